import warnings

import numpy as np
import pytest
from dlm_edge.export.onnx_graph.lint import CPU_OPS
from dlm_edge.jetson.graph.onnx_graph import read_graph
from dlm_edge.jetson.graph.shape_rules import RULES
from dlm_edge.jetson.graph.shapes import infer
from dlm_edge.runtime.errors import BundleError
from onnx import helper, load, numpy_helper
from onnx.reference import ReferenceEvaluator
from toy_bundle import toy_model

F, B = "float32", "bool"
IDS = np.array([[0, 2], [1, 1]], np.int64)
TWO = np.array([2], np.int64)
SCALE, ZERO = np.array(0.5, np.float32), np.array(0, np.int8)


def ints(*values):
    return np.array(values, np.int64)


# op, shapes and dtypes of inputs (or constants), attributes, number of outputs
CASES = [
    ("Add", [((2, 3), F), ((3,), F)], {}, 1),
    ("Mul", [((4, 1, 3), F), ((2, 1), F)], {}, 1),
    ("Where", [((2, 1), B), ((2, 3), F), ((3,), F)], {}, 1),
    ("Less", [((2, 3), F), ((1,), F)], {}, 1),
    ("And", [((2, 1), B), ((1, 2), B)], {}, 1),
    ("Cast", [((2, 3), F)], {"to": 10}, 1),
    ("Softmax", [((2, 3), F)], {"axis": -1}, 1),
    ("LayerNormalization", [((2, 3), F), ((3,), F)], {"axis": -1}, 1),
    ("Clip", [((2, 3), F), np.array(0, np.float32), np.array(1, np.float32)], {}, 1),
    ("Trilu", [((3, 3), F)], {"upper": 0}, 1),
    ("CumSum", [((3, 3), F), np.array(0, np.int64)], {}, 1),
    ("MatMul", [((2, 4, 5), F), ((5, 3), F)], {}, 1),
    ("MatMul", [((2, 1, 4, 5), F), ((3, 5, 2), F)], {}, 1),
    ("MatMul", [((5,), F), ((2, 5, 3), F)], {}, 1),
    ("MatMul", [((2, 4, 5), F), ((5,), F)], {}, 1),
    ("MatMul", [((5,), F), ((5,), F)], {}, 1),
    ("Gemm", [((4, 5), F), ((3, 5), F)], {"transB": 1}, 1),
    ("Gemm", [((5, 4), F), ((5, 3), F), ((3,), F)], {"transA": 1}, 1),
    ("Einsum", [((2, 3, 4), F), ((2, 5, 4), F)], {"equation": "bij,bkj->bik"}, 1),
    ("Einsum", [((2, 3), F), ((3, 4), F)], {"equation": "ij,jk"}, 1),
    ("Conv", [((1, 2, 9), F), ((4, 2, 3), F)], {"pads": [1, 1], "strides": [2]}, 1),
    ("Conv", [((1, 2, 9, 8), F), ((4, 2, 3, 2), F)], {"dilations": [2, 1]}, 1),
    ("Reshape", [((2, 6), F), ints(3, -1)], {}, 1),
    ("Reshape", [((2, 6), F), ints(0, 3, 2)], {}, 1),
    ("Flatten", [((2, 3, 4), F)], {"axis": 2}, 1),
    ("Squeeze", [((2, 1, 3, 1), F), ints(1, -1)], {}, 1),
    ("Squeeze", [((2, 1, 3, 1), F)], {}, 1),
    ("Unsqueeze", [((2, 3), F), ints(0, -1)], {}, 1),
    ("Transpose", [((2, 3, 4), F)], {"perm": [2, 0, 1]}, 1),
    ("Transpose", [((2, 3, 4), F)], {}, 1),
    ("Concat", [((2, 3), F), ((2, 4), F)], {"axis": -1}, 1),
    ("Split", [((2, 7), F)], {"axis": 1, "num_outputs": 3}, 3),
    ("Split", [((2, 7), F), ints(2, 5)], {"axis": 1}, 2),
    ("Slice", [((4, 9), F), ints(1, -8), ints(3, 2**62), ints(0, 1), ints(1, 3)], {}, 1),
    ("Slice", [((4, 9), F), ints(3), ints(0), ints(0), ints(-1)], {}, 1),
    ("Gather", [((4, 3), F), IDS], {"axis": 0}, 1),
    ("Gather", [((4, 3), F), np.array(1, np.int64)], {"axis": 1}, 1),
    ("GatherElements", [((2, 3), F), IDS], {"axis": 1}, 1),
    ("GatherND", [((4, 3), F), IDS], {}, 1),
    ("Expand", [((3, 1), F), ints(2, 1, 4)], {}, 1),
    ("Tile", [((2, 3), F), ints(2, 1)], {}, 1),
    ("Pad", [((2, 3), F), ints(1, 0, 0, 2)], {}, 1),
    ("Pad", [((2, 3), F), ints(1, 2), np.array(0, np.float32), ints(1)], {}, 1),
    ("Range", [np.array(1), np.array(9), np.array(3)], {}, 1),
    ("ConstantOfShape", [ints(2, 3)], {}, 1),
    ("OneHot", [IDS, np.array(5, np.int64), np.array([0, 1], np.float32)], {}, 1),
    ("Shape", [((2, 3, 4), F)], {"start": 1}, 1),
    ("Shape", [((2, 3, 4), F)], {"start": -2, "end": -1}, 1),
    ("TopK", [((2, 5), F), TWO], {}, 2),
    ("ArgMax", [((2, 5), F)], {"axis": 1, "keepdims": 0}, 1),
    ("ReduceSum", [((2, 3, 4), F), ints(0, -1)], {"keepdims": 0}, 1),
    ("ReduceMean", [((2, 3), F)], {}, 1),
    ("ReduceMax", [((2, 3), F)], {"noop_with_empty_axes": 1}, 1),
    ("QuantizeLinear", [((2, 3), F), SCALE, ZERO], {}, 1),
    ("DynamicQuantizeLinear", [((2, 3), F)], {}, 3),
    ("MatMulInteger", [((2, 4, 5), "uint8"), ((5, 3), "int8")], {}, 1),
    ("DequantizeLinear", [((2, 3), "int8"), SCALE, ZERO], {}, 1),
]


def reference(model, feeds):
    """Every value that the onnx package's own interpreter computes, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ReferenceEvaluator(model).run(None, feeds, intermediate=True)


def compare(model, feeds, sizes):
    found = infer(read_graph(model.SerializeToString()), sizes)
    computed = {k: np.asarray(v) for k, v in reference(model, feeds).items() if v is not None}
    assert len(computed) > len(feeds)
    for name, value in computed.items():
        if not name:
            continue
        assert found[name].shape == value.shape, name
        assert found[name].dtype == str(value.dtype), name
        if found[name].known is not None:
            assert np.array_equal(found[name].known, value), name
    return found


@pytest.mark.parametrize(("op", "inputs", "attributes", "outputs"), CASES)
def test_an_operator_gives_the_shapes_of_the_reference(op, inputs, attributes, outputs):
    rng = np.random.default_rng(0)
    feeds, constants, ports = {}, {}, []
    names = [f"x{i}" for i in range(len(inputs))]
    for name, given in zip(names, inputs, strict=True):
        if isinstance(given, np.ndarray):
            constants[name] = given
            continue
        shape, dtype = given
        feeds[name] = rng.integers(0, 2, shape).astype(dtype)
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        ports.append(helper.make_tensor_value_info(name, kind, shape))
    outs = [f"y{i}" for i in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(op, names, outs, **attributes)],
        "g",
        ports,
        [helper.make_empty_tensor_value_info(name) for name in outs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    # The reader wants types of outputs; the reference does not.
    for port in model.graph.output:
        port.type.tensor_type.elem_type = 1
    compare(model, feeds, {})


def test_every_operator_that_export_admits_has_a_rule():
    older = {"DynamicQuantizeLinear"}  # of int8 bundles like the one that ships
    assert set(RULES) == CPU_OPS | older


def feeds_of(bundle, rows, context):
    rng = np.random.default_rng(0)
    spec = next(s for s in bundle.manifest.graphs if (s.rows, s.context) == (rows, context))
    return {item.name: rng.integers(0, 2, item.shape).astype(item.dtype) for item in spec.inputs}


@pytest.mark.parametrize(("rows", "context"), [(4, 8), (4, 16), (16, 8)])
@pytest.mark.parametrize("name", ["draft", "typed_draft"])
def test_an_exported_graph_has_the_shapes_of_the_reference(name, rows, context, request):
    bundle = request.getfixturevalue(name)
    path = bundle.member("graphs/denoise.onnx")

    model = load(str(path))
    found = compare(model, feeds_of(bundle, rows, context), {"rows": rows, "context": context})
    assert found["logits"].shape == (1, rows, 70)
    assert not found["logits"].constant


def test_a_graph_by_hand_has_the_shapes_of_the_reference():
    model = toy_model()
    feeds = {
        "ids": np.zeros((1, 3), np.int32),
        "start": np.zeros(1, np.int32),
        "kv": np.zeros((5, 1, 1, 2, 1, 4), np.float32),
    }
    found = compare(model, feeds, {"rows": 3, "context": 5})
    assert found["places"].known.tolist() == [0, 1, 2, 3, 4]
    assert found["places"].constant
    assert not found["valid"].constant


def test_an_operator_without_a_rule_is_an_error_that_names_it():
    graph = helper.make_graph([helper.make_node("Det", ["x"], ["y"], name="d")], "g", [], [])
    graph.initializer.append(numpy_helper.from_array(np.eye(2, dtype=np.float32), "x"))
    data = helper.make_model(graph).SerializeToString()
    with pytest.raises(BundleError, match="Det 'd' is not understood"):
        infer(read_graph(data), {})


def test_shapes_that_contradict_each_other_are_an_error():
    node = helper.make_node("MatMul", ["x", "x"], ["y"])
    graph = helper.make_graph([node], "g", [], [])
    graph.initializer.append(numpy_helper.from_array(np.ones((2, 3), np.float32), "x"))
    with pytest.raises(BundleError, match="MatMul"):
        infer(read_graph(helper.make_model(graph).SerializeToString()), {})
