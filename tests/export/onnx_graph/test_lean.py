"""Graphs without the bytes of their weights: types, shapes and faults are found as with them."""

import numpy as np
import onnx
import pytest
from dlm_edge.export.onnx_graph.lean import check_valid, inferred, lean
from dlm_edge.export.onnx_graph.outside import fill
from dlm_edge.export.onnx_graph.sharing import share_between
from dlm_edge.runtime.errors import EngineError
from onnx import TensorProto, helper, numpy_helper

ROWS, COLUMNS = 700, 512


def product(op="MatMul"):
    weight = numpy_helper.from_array(np.ones((COLUMNS, ROWS), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "rows", COLUMNS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "rows", ROWS])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_the_weights_are_left_out_and_their_shapes_kept():
    model = product()
    made = lean(model)
    assert made.ByteSize() < 1000
    assert list(made.graph.initializer[0].dims) == [COLUMNS, ROWS]
    assert model.ByteSize() > 4 * ROWS * COLUMNS
    shape = inferred(model).graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_value or dim.dim_param for dim in shape] == [1, "rows", ROWS]


def test_a_graph_that_is_no_onnx_is_one_line():
    check_valid(product(), "g")
    with pytest.raises(EngineError, match="graph g is no valid ONNX"):
        check_valid(product("NoSuchOperator"), "g")


def test_a_matrix_that_another_graph_looks_up_is_stored_as_rows():
    rows = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    lookup = helper.make_graph(
        [helper.make_node("Gather", ["embed", "ids"], ["x"])],
        "lookup",
        [helper.make_tensor_value_info("ids", TensorProto.INT32, [1, 3])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, COLUMNS])],
        [helper.make_tensor("embed", TensorProto.FLOAT, [0], [])],
    )
    first, head = helper.make_model(lookup), product()
    traced = {"step": (first, {"embed": rows}), "head": (head, {"w": rows.T})}
    share_between(traced)
    (_, arrays) = traced["head"]
    assert list(arrays) == ["embed"]
    assert arrays["embed"] is rows
    assert head.graph.node[0].op_type == "Transpose"
    fill(head, arrays)
    onnx.checker.check_model(head)
    (stored,) = head.graph.initializer
    assert numpy_helper.to_array(stored).tobytes() == rows.tobytes()
