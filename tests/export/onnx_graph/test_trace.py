import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from dlm_edge.calibration.forms.float16 import store_fp16
from dlm_edge.calibration.graphs import num_bytes
from dlm_edge.export.onnx_graph.trace import OPSET, example_inputs, trace
from dlm_edge.export.onnx_graph.weights import split_weights
from dlm_edge.runtime.errors import ConfigError, EngineError
from dlm_edge.train.families.base import ExportGraph, GraphTensor
from onnx import numpy_helper
from small_graphs import data_of, set_weight, weights_of
from torch import nn


@pytest.fixture
def model(traced_model):
    return traced_model.clone()


def run(model, graph, rows, context, seed=0):
    rng = np.random.default_rng(seed)
    session = onnxruntime.InferenceSession(data_of(model), providers=["CPUExecutionProvider"])
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


def test_the_graph_holds_nothing_of_the_machine_it_was_traced_on(model):
    data = data_of(model)
    assert b"site-packages" not in data
    assert b".py" not in data
    assert not any(node.metadata_props or node.doc_string for node in model.graph)
    assert model.opset_imports == {"": OPSET}
    assert OPSET <= 20


def test_dimensions_keep_their_names(model):
    dims = {
        value.name: [dim if isinstance(dim, int) else str(dim) for dim in value.shape]
        for value in (*model.graph.inputs, *model.graph.outputs)
    }
    assert dims["ids"] == [1, "rows"]
    assert dims["kv"][0] == "context"
    assert dims["logits"] == [1, "rows", 258]
    assert dims["kv_new"][0] == "rows"


def test_tied_embeddings_are_stored_once(model, tiny_graph):
    tied = [array for array in weights_of(model).values() if 258 in array.shape]
    assert len(tied) == 1


def test_the_norm_stands_as_a_division(model):
    ops = {node.op_type for node in model.graph}
    assert "Reciprocal" not in ops
    assert "Div" in ops


def test_fp16_storage_rounds_weights_and_nothing_else(model, tiny_graph):
    before = num_bytes(model)
    _, whole = run(model, tiny_graph, 4, 16)
    assert store_fp16(model) > 0
    onnx.checker.check_model(ir.to_proto(model))
    _, half = run(model, tiny_graph, 4, 16)
    assert num_bytes(model) < 0.75 * before
    for one, other in zip(whole, half, strict=True):
        assert other.dtype == np.float32
        np.testing.assert_allclose(one, other, rtol=0.05, atol=0.05 * np.abs(one).max())
    assert not np.array_equal(whole[0], half[0])


def test_a_weight_beyond_float16_is_a_config_error(model):
    name = next(name for name, array in weights_of(model).items() if 258 in array.shape)
    array = weights_of(model)[name].copy()
    array[0, 0] = 1e6
    set_weight(model, name, array)
    with pytest.raises(ConfigError, match="fp32"):
        store_fp16(model)


def test_split_weights_come_back_as_they_were(model, tmp_path):
    wanted = weights_of(model)
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
    members = split_weights({"g": ir.from_proto(onnx.helper.make_model(graph))}, tmp_path)
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
