"""A head or embedding beyond one allocation is cut along the vocabulary and computes the same."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from dlm_edge.calibration.layers import find_layers
from dlm_edge.export.onnx_graph.lint import lint
from dlm_edge.export.onnx_graph.vocabulary import split_vocabulary
from onnx import TensorProto, helper, numpy_helper
from small_graphs import data_of, weights_of

VOCAB, DIM = 300, 8


def make(kind):
    """ids to logits through one tied matrix, or through a lookup or a product alone."""
    rng = np.random.default_rng(0)
    rows = numpy_helper.from_array(
        rng.standard_normal((VOCAB, DIM)).astype(np.float32), "model.embed.weight"
    )
    columns = numpy_helper.from_array(
        rng.standard_normal((DIM, VOCAB)).astype(np.float32), "model.head.weight"
    )
    small = numpy_helper.from_array(rng.standard_normal((64, DIM)).astype(np.float32), "small")
    nodes = {
        "tied": [
            helper.make_node("Gather", ["model.embed.weight", "ids"], ["x"]),
            helper.make_node("Transpose", ["model.embed.weight"], ["t"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "t"], ["y"]),
        ],
        "lookup": [helper.make_node("Gather", ["model.embed.weight", "ids"], ["y"])],
        "product": [
            helper.make_node("Gather", ["small", "ids"], ["x"]),
            helper.make_node("MatMul", ["x", "model.head.weight"], ["y"]),
        ],
    }[kind]
    used = {name for node in nodes for name in node.input}
    width = DIM if kind == "lookup" else VOCAB
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT32, [1, "rows"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "rows", width])],
        [item for item in (rows, columns, small) if item.name in used],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ir.from_proto(made)


def run(model, ids):
    session = onnxruntime.InferenceSession(data_of(model), providers=["CPUExecutionProvider"])
    return session.run(None, {"ids": ids})[0]


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("kind", ["tied", "lookup", "product"])
def test_the_parts_compute_what_the_whole_did(kind, parts):
    model = make(kind)
    highest = 64 if kind == "product" else VOCAB
    ids = np.arange(highest, dtype=np.int32)[None]
    wanted = run(model, ids)
    limit = -(-VOCAB * DIM * 4 // parts)
    cut = split_vocabulary(model, item_bytes=4, limit=limit)
    assert len(cut) == 1
    np.testing.assert_allclose(run(model, ids), wanted, rtol=1e-6, atol=1e-6)
    onnx.checker.check_model(ir.to_proto(model))
    assert lint(model) == []
    names = list(weights_of(model))
    assert sum(name.endswith(".weight") for name in names) == parts


def test_a_tied_matrix_stays_one_layer_per_part():
    model = make("tied")
    split_vocabulary(model, item_bytes=4, limit=VOCAB * DIM * 4 // 2)
    layers = find_layers(model, {"ids": "canvas"})
    assert [layer.name for layer in layers] == ["embed.0", "embed.1"]
    assert all(layer.kind == "tied" and layer.head for layer in layers)


def test_what_fits_in_the_end_is_left_alone():
    model = make("tied")
    before = data_of(model)
    assert split_vocabulary(model, item_bytes=2, limit=VOCAB * DIM * 2) == ()
    assert data_of(model) == before
