from types import MappingProxyType

import numpy as np
import onnx_ir as ir
import pytest
from dlm_edge.export.onnx_graph.lint import lint, operator_counts, require_clean
from dlm_edge.runtime.errors import EngineError
from onnx import TensorProto, helper, numpy_helper

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def build(nodes, constants=MappingProxyType({}), *, inputs=None, outputs=None, opset=20):
    inputs = inputs or [("x", FLOAT, [4, 8])]
    outputs = outputs or [("y", FLOAT, None)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*item) for item in inputs],
        [helper.make_tensor_value_info(*item) for item in outputs],
        [
            numpy_helper.from_array(np.asarray(value), name)
            for name, value in dict(constants).items()
        ],
    )
    return ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    )


def node(op, inputs, outputs=("y",), **attributes):
    return helper.make_node(op, list(inputs), list(outputs), **attributes)


def found(model) -> str:
    return " | ".join(lint(model))


def test_an_exported_graph_is_clean(traced_model):
    assert lint(traced_model) == []


def test_operators_are_counted():
    model = build(
        [node("Add", ["x", "x"], ["a"]), node("Add", ["a", "a"])], outputs=[("y", FLOAT, [4, 8])]
    )
    assert operator_counts(model) == {"Add": 2}


def fixed(op, *names, **attributes):
    return build([node(op, names, **attributes)], outputs=[("y", FLOAT, [4, 8])])


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (fixed("Elu", "x"), "op Elu"),
        (fixed("Celu", "x"), "op Celu"),
        (
            build([node("Add", ["x", "x"])], outputs=[("y", FLOAT, [4, 8])], opset=21),
            "opset 21",
        ),
        (
            build(
                [node("Concat", ["x", "nothing"], axis=0)],
                {"nothing": np.zeros((0, 8), np.float32)},
                outputs=[("y", FLOAT, [4, 8])],
            ),
            "empty",
        ),
        (
            build(
                [node("Add", ["x", "c"])],
                {"c": np.float32(np.nan)},
                outputs=[("y", FLOAT, [4, 8])],
            ),
            "NaN",
        ),
        (
            build(
                [node("Add", ["x", "x"])],
                inputs=[("x", TensorProto.DOUBLE, [4, 8])],
                outputs=[("y", TensorProto.DOUBLE, [4, 8])],
            ),
            "DOUBLE",
        ),
        (
            build(
                [node("Add", ["x", "x"])],
                inputs=[("x", FLOAT, [None, 8])],
                outputs=[("y", FLOAT, ["rows", 8])],
            ),
            "neither a number",
        ),
        (
            build(
                [node("Add", ["x", "h"])],
                inputs=[("x", FLOAT, [4, 8]), ("h", HALF, [4, 8])],
                outputs=[("y", FLOAT, [4, 8])],
            ),
            "contradict",
        ),
    ],
)
def test_what_a_backend_would_refuse_is_named(model, word):
    assert word in found(model)
    with pytest.raises(EngineError, match=r"would not run|is not valid ONNX"):
        require_clean(model, "g")


def test_control_flow_is_named():
    branch = helper.make_graph(
        [node("Identity", ["x"], ["b"])],
        "branch",
        [],
        [helper.make_tensor_value_info("b", FLOAT, [4, 8])],
    )
    model = build(
        [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)],
        inputs=[("x", FLOAT, [4, 8]), ("c", TensorProto.BOOL, [])],
        outputs=[("y", FLOAT, [4, 8])],
    )
    assert "control flow" in found(model)


def quantised(scale, zero, *, weight=False, constant=True, dtype=FLOAT):
    constants = {"zero": zero, "w": np.ones((8, 4), np.float32)}
    inputs = [("x", dtype, [4, 8])]
    if constant:
        constants["scale"] = scale
    else:
        inputs.append(("scale", FLOAT, list(np.shape(scale))))
    source = "w" if weight else "x"
    axis = {"axis": 1} if np.ndim(scale) else {}
    nodes = [
        node("QuantizeLinear", [source, "scale", "zero"], ["q"], **axis),
        node("DequantizeLinear", ["q", "scale", "zero"], ["d"], **axis),
        node("MatMul", ["x", "d"] if weight else ["d", "w"], ["y"]),
    ]
    return build(nodes, constants, inputs=inputs, outputs=[("y", FLOAT, [4, 4])])


ONE, ZERO = np.float32(0.1), np.int8(0)
PER_CHANNEL = np.full(4, 0.1, np.float32)


def test_symmetric_quantisation_is_clean():
    assert lint(quantised(ONE, ZERO)) == []
    assert lint(quantised(PER_CHANNEL, np.zeros(4, np.int8), weight=True)) == []


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (quantised(ONE, np.int8(3)), "zero point"),
        (quantised(ONE, np.uint8(0)), "int8"),
        (quantised(np.full(8, 0.1, np.float32), np.zeros(8, np.int8)), "only weights"),
        (quantised(np.float32(0), ZERO), "positive"),
        (quantised(ONE, ZERO, constant=False), "not a constant"),
    ],
)
def test_quantisation_that_tensorrt_10_3_refuses_is_named(model, word):
    assert word in found(model)


def stored(axis, *, turned=False):
    """A product with an int8 matrix that has one scale per row (axis 0) or column."""
    matrix = np.ones((4, 8) if turned else (8, 4), np.int8)
    count = matrix.shape[axis]
    constants = {
        "w": matrix,
        "scale": np.full(count, 0.1, np.float32),
        "zero": np.zeros(count, np.int8),
    }
    nodes = [node("DequantizeLinear", ["w", "scale", "zero"], ["d"], axis=axis)]
    if turned:
        nodes.append(node("Transpose", ["d"], ["t"], perm=[1, 0]))
    nodes.append(node("MatMul", ["x", "t" if turned else "d"], ["y"]))
    return build(nodes, constants, outputs=[("y", FLOAT, [4, 4])])


def test_a_weights_scales_count_the_outputs_of_its_product():
    assert lint(stored(1)) == []
    assert lint(stored(0, turned=True)) == []
    assert "sums over" in found(stored(0))
    assert "sums over" in found(stored(1, turned=True))


def test_a_graph_for_the_cpu_may_use_its_integer_products():
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("MatMulInteger", ["q", "w", "z"], ["i"]),
        node("Cast", ["i"], ["f"], to=FLOAT),
        node("Mul", ["f", "s"], ["y"]),
    ]
    constants = {"w": np.ones((8, 4), np.int8), "s": np.float32(0.1), "z": np.uint8(128)}
    model = build(nodes, constants, outputs=[("y", FLOAT, [4, 4])])
    assert lint(model, board=False) == []
    require_clean(model, "g", board=False)
    assert "MatMulInteger" in found(model)
    assert "UINT8" in found(model)


def test_a_scale_of_another_dtype_than_its_input_is_named():
    model = build(
        [
            node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            node("DequantizeLinear", ["q", "half", "zero"], ["y"]),
        ],
        {"scale": ONE, "zero": ZERO, "half": np.float16(0.1)},
        inputs=[("x", HALF, [4, 8])],
        outputs=[("y", HALF, [4, 8])],
    )
    assert "dtype" in found(model) or "contradict" in found(model)


def attention(*, scale_scores: bool):
    constants = {"size": np.float32(0.5), "bias": np.zeros((4, 4), np.float32)}
    product = ["x", "t"]
    nodes = [node("Transpose", ["x"], ["t"], perm=[1, 0])]
    if scale_scores:
        nodes += [node("MatMul", product, ["s"]), node("Mul", ["s", "size"], ["scaled"])]
    else:
        nodes += [node("Mul", ["x", "size"], ["q"]), node("MatMul", ["q", "t"], ["scaled"])]
    nodes += [node("Add", ["scaled", "bias"], ["masked"]), node("Softmax", ["masked"])]
    return build(nodes, constants, outputs=[("y", FLOAT, [4, 4])])


def test_queries_must_be_scaled_before_their_product_with_the_keys():
    assert lint(attention(scale_scores=False)) == []
    assert "scale the queries" in found(attention(scale_scores=True))
