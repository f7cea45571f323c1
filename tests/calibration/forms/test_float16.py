from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from dlm_edge.calibration.forms.board import BoardForm
from dlm_edge.calibration.forms.float16 import (
    FLOAT,
    HALF,
    WIDE_OPS,
    half_values,
    narrow_cache,
    type_fp16,
)
from dlm_edge.calibration.forms.qdq import quantize
from dlm_edge.calibration.layers import find_layers
from dlm_edge.export.onnx_graph.lint import lint
from dlm_edge.runtime.errors import ConfigError
from onnx.reference import ReferenceEvaluator
from small_graphs import data_of, set_weight, weights_of
from tiny_checkpoint import BLOCK, CONTEXT, VOCAB


@pytest.fixture
def whole(traced_model):
    return traced_model.clone()


@pytest.fixture
def half(traced_model):
    model = traced_model.clone()
    type_fp16(model)
    return model


def feeds(graph, garbage=0.0):
    """Half of the context is valid; what lies behind it is `garbage`."""
    rng = np.random.default_rng(0)
    sizes = {"batch": 1, "rows": BLOCK, "context": CONTEXT}
    values = {}
    for tensor in graph.inputs:
        shape = tuple(sizes[d] if isinstance(d, str) else d for d in tensor.shape)
        values[tensor.name] = rng.standard_normal(shape).astype(tensor.dtype)
    values["ids"] = rng.integers(0, VOCAB, (1, BLOCK)).astype(np.int32)
    values["start"] = np.full(1, CONTEXT // 2, np.int32)
    values["split"] = np.zeros(1, np.int32)
    values["kv"][CONTEXT // 2 :] = garbage
    return values


def run(model, graph, *, garbage=0.0, optimised=True):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        data_of(model), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds(graph, garbage))


@pytest.mark.parametrize("optimised", [True, False])
def test_float16_arithmetic_stays_close_to_float32(whole, half, tiny_graph, optimised):
    wanted = run(whole, tiny_graph)
    found = run(half, tiny_graph, optimised=optimised)
    for one, other in zip(wanted, found, strict=True):
        assert other.dtype == np.float32
        error = np.abs(one - other).max() / np.abs(one).max()
        assert 0 < error < 3e-3


def test_what_lies_behind_the_valid_rows_of_the_cache_never_matters(half, tiny_graph):
    for garbage in (1e5, -3e38, 3e38):
        found = run(half, tiny_graph, garbage=garbage)
        wanted = run(half, tiny_graph)
        for one, other in zip(wanted, found, strict=True):
            np.testing.assert_array_equal(one, other)


def test_inputs_and_outputs_keep_names_and_dtypes(whole, half):
    before, after = ir.to_proto(whole).graph, ir.to_proto(half).graph
    assert list(after.input) == list(before.input)
    assert list(after.output) == list(before.output)


def test_the_typed_graph_is_valid_and_follows_the_rules(half):
    onnx.checker.check_model(ir.to_proto(half), full_check=True)
    assert lint(half) == []


def types(model):
    inferred = onnx.shape_inference.infer_shapes(ir.to_proto(model), strict_mode=True).graph
    found = {
        item.name: item.type.tensor_type.elem_type
        for item in (*inferred.input, *inferred.output, *inferred.value_info)
    }
    return found | {item.name: item.data_type for item in inferred.initializer}


def test_products_are_float16_and_statistics_float32(half):
    kinds = types(half)
    seen = Counter()
    for node in ir.to_proto(half).graph.node:
        for name in (*node.input, *node.output):
            kind = kinds[name]
            if node.op_type == "MatMul":
                assert kind == HALF
                seen["products"] += 1
            if node.op_type in WIDE_OPS - {"Cast"}:
                assert kind != HALF
                seen[node.op_type] += 1
    assert seen["products"] > 0
    assert seen["Softmax"] > 0
    assert seen["ReduceMean"] > 0
    assert seen["Cos"] > 0


def test_the_square_under_a_norm_is_computed_in_float32(half):
    """Beyond 256 a square leaves float16's range."""
    kinds = types(half)
    nodes = ir.to_proto(half).graph.node
    makers = {name: node for node in nodes for name in node.output}
    for node in nodes:
        if node.op_type == "ReduceMean":
            square = makers[node.input[0]]
            assert all(kinds[name] == FLOAT for name in square.output)
            assert kinds[square.input[0]] == FLOAT


def test_every_matrix_is_stored_in_half_the_bytes(half):
    matrices = [array for array in weights_of(half).values() if array.ndim > 1]
    assert matrices
    assert all(array.dtype == np.float16 for array in matrices if array.size)


def test_a_value_is_cast_at_most_once_to_each_dtype(half):
    casts = [
        (node.inputs[0], node.attributes["to"].as_int())
        for node in half.graph
        if node.op_type == "Cast"
    ]
    assert len(casts) == len(set(casts))


def test_a_weight_beyond_float16_is_a_config_error(whole):
    name = next(name for name, array in weights_of(whole).items() if VOCAB in array.shape)
    array = weights_of(whole)[name].copy()
    array[0, 0] = 1e6
    set_weight(whole, name, array)
    with pytest.raises(ConfigError, match="--precision fp32"):
        type_fp16(whole)


def test_rounding_after_every_operation_stays_close_to_float32(whole, half, tiny_graph):
    """ONNX Runtime on a CPU skips roundings that a GPU makes; the reference makes them all."""
    values = feeds(tiny_graph)
    wanted = run(whole, tiny_graph)
    found = ReferenceEvaluator(ir.to_proto(half)).run(None, values)
    for one, other in zip(wanted, found, strict=True):
        assert other.dtype == np.float32
        error = np.abs(one - other).max() / np.abs(one).max()
        assert 0 < error < 5e-3


def test_values_beyond_float16_stay_float32_with_all_that_touches_them(whole, tiny_graph):
    """Weights scaled so that one product leaves float16's range and what follows brings it back."""
    before, product = [node for node in whole.graph if node.op_type == "MatMul"][-3:-1]
    for node, most in ((before, 100.0), (product, 6e4)):
        name = node.inputs[1].name
        array = weights_of(whole)[name]
        set_weight(whole, name, array * np.float32(most / np.abs(array).max()))
    large = product.outputs[0].name
    typed = whole.clone()
    users = [node.outputs[0].name for node in product.outputs[0].consumers()]
    type_fp16(typed, float32=(large, *users))
    kinds = types(typed)
    assert kinds[large] == FLOAT
    assert all(kinds[name] == FLOAT for name in users)
    assert lint(typed) == []
    wanted, found = run(whole, tiny_graph), run(typed, tiny_graph)
    error = np.abs(wanted[0] - found[0]).max() / np.abs(wanted[0]).max()
    assert error < 5e-3
    clipped = whole.clone()
    type_fp16(clipped)
    lost = ReferenceEvaluator(ir.to_proto(clipped)).run(None, feeds(tiny_graph))
    assert not np.isfinite(lost[0]).all()


def test_the_values_that_become_float16_are_named(whole, half):
    names = half_values(whole)
    kinds = types(half)
    outputs = {value.name for value in whole.graph.outputs}
    assert names
    assert all(kinds[name] == HALF for name in names if name not in outputs)
    made = [value.name for node in whole.graph for value in node.outputs]
    half_typed = {name for name in made if kinds.get(name) == HALF}
    assert half_typed <= set(names)


@pytest.fixture
def int8(whole, tiny_graph):
    layers = find_layers(whole, {tensor.name: tensor.role for tensor in tiny_graph.inputs})
    recipe = BoardForm().default_recipe(layers, "int8")
    for layer in layers:
        recipe = recipe.with_layer(layer.name, scale=0.03)
    model = quantize(whole, layers, recipe)
    type_fp16(model)
    return model


def test_quantised_layers_take_the_dtype_around_them(int8, half):
    """TensorRT 10.3 wants a scale of the dtype that enters Q and leaves DQ."""
    kinds = types(int8)
    seen = Counter()
    for node in ir.to_proto(int8).graph.node:
        if node.op_type == "QuantizeLinear":
            assert [kinds[name] for name in node.input[:2]] == [HALF, HALF]
            seen["q"] += 1
        if node.op_type == "DequantizeLinear":
            assert kinds[node.input[1]] == kinds[node.output[0]] == HALF
            seen["dq"] += 1
    assert seen == {"q": 2 * 4, "dq": 2 * 4 + 2 * 4 + 1}
    assert lint(int8) == []
    onnx.checker.check_model(ir.to_proto(int8), full_check=True)
    # Nothing else changed its dtype.
    before = types(half)
    same = [name for name in before if name in kinds and not name.endswith(".dequantized")]
    assert all(before[name] == kinds[name] for name in same)


@pytest.mark.parametrize("optimised", [True, False])
def test_the_typed_int8_graph_stays_close_to_float32(whole, int8, tiny_graph, optimised):
    wanted = run(whole, tiny_graph)
    found = run(int8, tiny_graph, optimised=optimised)
    for one, other in zip(wanted, found, strict=True):
        assert other.dtype == np.float32
        error = np.abs(one - other).max() / np.abs(one).max()
        assert 1e-4 < error < 0.1


def test_a_float16_cache_changes_no_value_that_float16_holds(half, tiny_graph):
    """Casts at the boundary were all that stood between the buffers and float16."""
    narrow = half.clone()
    assert narrow_cache(narrow, "kv", "kv_new")
    onnx.checker.check_model(ir.to_proto(narrow))
    kinds = {value.name: value.dtype for value in (*narrow.graph.inputs, *narrow.graph.outputs)}
    assert (kinds["kv"], kinds["kv_new"], kinds["logits"]) == (HALF, HALF, FLOAT)
    values = feeds(tiny_graph)
    values["kv"] = values["kv"].astype(np.float16).astype(np.float32)
    names = [tensor.name for tensor in tiny_graph.outputs]
    wanted = session_of(half).run(names, values)
    found = session_of(narrow).run(names, {**values, "kv": values["kv"].astype(np.float16)})
    for name, one, other in zip(names, wanted, found, strict=True):
        assert np.array_equal(one, other.astype(np.float32)), name


def session_of(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    given = {value.name for value in model.graph.inputs}
    session = onnxruntime.InferenceSession(
        data_of(model), options, providers=["CPUExecutionProvider"]
    )

    class Session:
        def run(self, names, values):
            return session.run(names, {k: v for k, v in values.items() if k in given})

    return Session()


def test_a_cache_that_something_reads_in_float32_stays_as_it_is(half, whole):
    assert not narrow_cache(whole, "kv", "kv_new")
    kv = next(value for value in half.graph.inputs if value.name == "kv")
    half.graph.append(ir.node("Identity", [kv], name="another"))
    before = data_of(half)
    assert not narrow_cache(half, "kv", "kv_new")
    assert data_of(half) == before
