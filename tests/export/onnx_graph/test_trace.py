import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from dlm_edge.export.onnx_graph.fp16 import store_fp16
from dlm_edge.export.onnx_graph.trace import OPSET, example_inputs, trace
from dlm_edge.export.onnx_graph.weights import split_weights
from dlm_edge.runtime.errors import ConfigError, EngineError
from dlm_edge.train.families.base import ExportGraph, GraphTensor
from onnx import numpy_helper
from torch import nn


@pytest.fixture
def model(traced_bytes):
    return onnx.load_from_string(traced_bytes)


def run(model, graph, rows, context, seed=0):
    rng = np.random.default_rng(seed)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feeds = {}
    for tensor, example in zip(
        graph.inputs,
        example_inputs(graph, {"batch": 1, "rows": rows, "context": context}),
        strict=True,
    ):
        shape = tuple(example.shape)
        feeds[tensor.name] = (
            rng.integers(0, 9, shape).astype(np.int32)
            if tensor.dtype == "int32"
            else rng.standard_normal(shape).astype(np.float32)
        )
    return feeds, session.run(None, feeds)


@pytest.mark.parametrize(("rows", "context"), [(4, 16), (1, 16), (8, 3), (16, 8), (1, 1)])
def test_one_traced_graph_serves_every_shape(model, tiny_graph, rows, context):
    feeds, (logits, kv_new) = run(model, tiny_graph, rows, context)
    with torch.no_grad():
        wanted = tiny_graph.module(*(torch.as_tensor(array) for array in feeds.values()))
    np.testing.assert_allclose(logits, wanted[0].numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(kv_new, wanted[1].numpy(), rtol=1e-4, atol=1e-5)


def test_the_graph_holds_nothing_of_the_machine_it_was_traced_on(traced_bytes, model):
    assert b"site-packages" not in traced_bytes
    assert b".py" not in traced_bytes
    assert not any(item.metadata_props or item.doc_string for item in model.graph.node)
    assert model.opset_import[0].version == OPSET <= 20
    assert [item.domain for item in model.opset_import] == [""]


def test_dimensions_keep_their_names(model):
    dims = {
        item.name: [dim.dim_param or dim.dim_value for dim in item.type.tensor_type.shape.dim]
        for item in (*model.graph.input, *model.graph.output)
    }
    assert dims["ids"] == [1, "rows"]
    assert dims["kv"][0] == "context"
    assert dims["logits"] == [1, "rows", 258]
    assert dims["kv_new"][0] == "rows"


def test_tied_embeddings_are_stored_once(model, tiny_graph):
    tied = [item for item in model.graph.initializer if 258 in item.dims]
    assert len(tied) == 1


def test_the_norm_stands_as_a_division(model):
    ops = {node.op_type for node in model.graph.node}
    assert "Reciprocal" not in ops
    assert "Div" in ops


def test_fp16_storage_rounds_weights_and_nothing_else(model, tiny_graph):
    before = sum(len(item.raw_data) for item in model.graph.initializer)
    _, whole = run(model, tiny_graph, 4, 16)
    assert store_fp16(model) > 0
    onnx.checker.check_model(model)
    _, half = run(model, tiny_graph, 4, 16)
    assert sum(len(item.raw_data) for item in model.graph.initializer) < 0.75 * before
    for one, other in zip(whole, half, strict=True):
        assert other.dtype == np.float32
        np.testing.assert_allclose(one, other, rtol=0.05, atol=0.05 * np.abs(one).max())
    assert not np.array_equal(whole[0], half[0])


def test_a_weight_beyond_float16_is_a_config_error(model):
    item = next(item for item in model.graph.initializer if 258 in item.dims)
    array = numpy_helper.to_array(item).copy()
    array[0, 0] = 1e6
    item.CopyFrom(numpy_helper.from_array(array, item.name))
    with pytest.raises(ConfigError, match="fp32"):
        store_fp16(model)


def test_split_weights_come_back_as_they_were(model, tmp_path):
    wanted = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    members = split_weights({"denoise": model}, tmp_path)
    assert set(members) == {"graphs/denoise.onnx", "graphs/denoise.weights"}
    loaded = onnx.load(str(members["graphs/denoise.onnx"]))
    assert len(members["graphs/denoise.onnx"].read_bytes()) < 100_000
    for item in loaded.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(item), wanted[item.name])


def test_equal_tensors_share_their_bytes(tmp_path):
    value = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [], "g", [], [], [numpy_helper.from_array(value, name) for name in ("a", "b")]
    )
    members = split_weights({"g": onnx.helper.make_model(graph)}, tmp_path)
    assert members["graphs/g.weights"].stat().st_size == value.nbytes


class Unexportable(nn.Module):
    def forward(self, ids):
        return (torch.as_tensor(ids.tolist()).float(),)


def test_a_module_that_cannot_be_exported_is_one_line_of_engine_error():
    graph = ExportGraph(
        name="odd",
        module=Unexportable(),
        inputs=(GraphTensor(name="ids", dtype="int32", shape=(1, "rows"), role="canvas"),),
        outputs=(GraphTensor(name="y", dtype="float32", shape=(1, "rows"), role="logits"),),
        shapes=lambda blocks, contexts: (),
    )
    with pytest.raises(EngineError) as caught:
        trace(graph, {"rows": 4})
    assert "\n" not in str(caught.value)
