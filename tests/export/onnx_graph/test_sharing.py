"""Graphs without the bytes of their weights, and matrices that two graphs share."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from dlm_edge.calibration.graphs import value_types, without_weights
from dlm_edge.export.onnx_graph.lint import require_clean
from dlm_edge.export.onnx_graph.trace import share_between
from dlm_edge.runtime.errors import EngineError
from onnx import TensorProto, helper, numpy_helper
from small_graphs import data_of, set_weight, weights_of

ROWS, COLUMNS = 700, 512


def product(op="MatMul"):
    weight = numpy_helper.from_array(np.ones((COLUMNS, ROWS), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "block", COLUMNS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "block", ROWS])],
        [weight],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ir.from_proto(made)


def test_the_weights_are_left_out_and_their_shapes_kept():
    model = product()
    made = without_weights(model)
    assert made.ByteSize() < 1000
    dims = made.graph.input[1].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [COLUMNS, ROWS]
    assert len(data_of(model)) > 4 * ROWS * COLUMNS
    assert value_types(model)["y"] == ir.DataType.FLOAT


def test_a_graph_that_is_not_onnx_is_one_line():
    require_clean(product(), "g")
    with pytest.raises(EngineError, match="graph g is not valid ONNX"):
        require_clean(product("NoSuchOperator"), "g")


def test_a_matrix_that_another_graph_looks_up_is_stored_as_rows():
    rows = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    lookup = helper.make_graph(
        [helper.make_node("Gather", ["embed", "ids"], ["x"])],
        "lookup",
        [helper.make_tensor_value_info("ids", TensorProto.INT32, [1, 3])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, COLUMNS])],
        [helper.make_tensor("embed", TensorProto.FLOAT, [0], [])],
    )
    first, head = ir.from_proto(helper.make_model(lookup)), product()
    set_weight(first, "embed", rows)
    set_weight(head, "w", rows.T)
    share_between({"step": first, "head": head})
    assert list(weights_of(head)) == ["embed"]
    assert np.shares_memory(weights_of(head)["embed"], rows)
    assert head.graph[0].op_type == "Transpose"
    onnx.checker.check_model(ir.to_proto(head))
    (stored,) = ir.to_proto(head).graph.initializer
    assert numpy_helper.to_array(stored).tobytes() == rows.tobytes()
