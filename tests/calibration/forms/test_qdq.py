from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from dlm_edge.calibration.forms.board import BoardForm
from dlm_edge.calibration.forms.qdq import activation_scale, quantize
from dlm_edge.calibration.layers import LEAST_HALF_STEP, find_layers
from dlm_edge.calibration.recipe import GraphRecipe, LayerRecipe
from dlm_edge.export.onnx_graph.lint import require_clean
from dlm_edge.runtime.errors import CalibrationError
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from small_graphs import (
    HIDDEN,
    ROLES,
    VOCAB,
    WIDTH,
    data_of,
    ids,
    quantize_matrix,
    small_graph,
    weights_of,
)


def chosen(model, **changes):
    """Every layer as int8 as it can be, activations in steps that cover the small graph's."""
    layers = find_layers(model, ROLES)
    recipes = dict(BoardForm().default_recipe(layers, "int8").layers)
    for name, layer in recipes.items():
        if layer.precision == "int8":
            recipes[name] = replace(layer, scale=0.02)
    recipes |= {name: LayerRecipe(**fields) for name, fields in changes.items()}
    return layers, GraphRecipe(layers=recipes)


OUTLIERS = {"precision": "int8", "scale": 0.02, "outliers": (1, 3)}


def run(model, feeds, *, optimised=True):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        data_of(model), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def ops(model, kind):
    return [node for node in model.graph if node.op_type == kind]


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 1),
    st.floats(1e-6, 1e3),
    st.integers(0, 99),
)
def test_a_weight_is_off_by_half_a_step_at_most(rows, columns, axis, size, seed):
    array = (np.random.default_rng(seed).standard_normal((rows, columns)) * size).astype(np.float32)
    values, scales = quantize_matrix(array, axis, half=True)
    assert values.dtype == np.int8
    assert abs(int(values.min())) <= 127
    assert scales.shape == (array.shape[axis],)
    np.testing.assert_array_equal(scales.astype(np.float16).astype(np.float32), scales)
    steps = np.expand_dims(scales, 1 - axis)
    # The largest entry is clipped by as much as float16 rounded the step down.
    slack = 0.5 + 127 * 2.0**-11
    assert (np.abs(values * steps - array) <= slack * steps * (1 + 1e-6)).all()


def test_a_weight_beyond_float16_is_dequantised_within_it():
    values, scales = quantize_matrix(np.full((2, 3), 1e6, np.float32), 0, half=True)
    assert np.isfinite(np.float16(scales) * values[:, 0].astype(np.float16)).all()
    assert values.max() == 127


def test_an_activation_of_next_to_nothing_has_a_step_that_float16_holds():
    (layer, *_) = find_layers(small_graph(), ROLES)
    recipe = LayerRecipe(precision="int8", scale=1e-9)
    assert activation_scale(layer, recipe) == np.float16(LEAST_HALF_STEP) > 0


def test_rows_of_zeros_have_a_step_too():
    _, scales = quantize_matrix(np.zeros((3, 4), np.float32), 0, half=True)
    assert (scales == LEAST_HALF_STEP).all()


def test_only_linear_layers_get_integers():
    model = small_graph()
    made = quantize(model, *chosen(model))
    assert len(ops(made, "QuantizeLinear")) == 2  # what enters up and down
    assert len(ops(made, "DequantizeLinear")) == 2 + 3
    assert {node.op_type for node in made.graph} - {"QuantizeLinear", "DequantizeLinear"} == {
        node.op_type for node in model.graph
    }
    matrices = {name: array for name, array in weights_of(made).items() if array.ndim == 2}
    assert {array.dtype for array in matrices.values()} == {np.dtype(np.int8)}
    assert len(matrices) == 3  # the tied embedding stands there once
    onnx.checker.check_model(ir.to_proto(made), full_check=True)


def test_the_given_graph_stays_as_it_is():
    model = small_graph()
    before = data_of(model)
    quantize(model, *chosen(model))
    assert data_of(model) == before


def by_hand(model, canvas, scale, outliers=()):
    """The small graph in NumPy, weights and activations rounded as the rules say."""
    arrays = weights_of(model)
    few = list(outliers)

    def rounded(name, axis):
        array = arrays[name].copy()
        if name == "model.mlp.up.weight":
            array[few] = 0
        values, scales = quantize_matrix(array, axis, half=True)
        return values * np.expand_dims(scales, 1 - axis)

    def steps(x):
        scale16 = np.float32(np.float16(scale))
        return np.clip(np.rint(x / scale16), -128, 127) * scale16

    embed = rounded("model.embed.weight", 0)
    x = embed[canvas]
    up = steps(x) @ rounded("model.mlp.up.weight", 1)
    up = up + x[..., few] @ arrays["model.mlp.up.weight"][few]
    down = steps(1 / (1 + np.exp(-up))) @ rounded("model.mlp.down.weight", 1)
    return (x + down) @ embed.T


@pytest.mark.parametrize("optimised", [True, False])
def test_the_graph_computes_what_the_rules_say(optimised):
    model = small_graph()
    layers, recipe = chosen(model)
    canvas = ids()
    (found,) = run(quantize(model, layers, recipe), {"ids": canvas}, optimised=optimised)
    wanted = by_hand(model, canvas, 0.02)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    (whole,) = run(model, {"ids": canvas})
    assert 1e-4 < np.abs(found - whole).max() < 0.1


@pytest.mark.parametrize("scale", [0.02, 0.001])
def test_outliers_are_multiplied_beside_whatever_their_channels_are_clipped_to(scale):
    model, outliers = small_graph(), (1, 3)
    fields = {"precision": "int8", "scale": scale}
    layers, recipe = chosen(
        model, **{"mlp.up": {**fields, "outliers": outliers}, "mlp.down": fields}
    )
    made = quantize(model, layers, recipe)
    (found,) = run(made, {"ids": ids()})
    np.testing.assert_allclose(found, by_hand(model, ids(), scale, outliers), atol=1e-5)
    thin = weights_of(made)["model.mlp.up.weight.outliers"]
    np.testing.assert_array_equal(thin, weights_of(model)["model.mlp.up.weight"][[1, 3]])
    onnx.checker.check_model(ir.to_proto(made), full_check=True)


def wide_graph():
    """A product of 128 inputs, in float32."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((128, 6)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "model.wide.weight"], ["y"])],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "rows", 128])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "rows", 6])],
        [numpy_helper.from_array(matrix, "model.wide.weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ir.from_proto(model), matrix


@pytest.mark.parametrize("half", [False, True])
def test_weights_of_4_bits_are_multiplied_as_their_grid_says(half):
    model, matrix = wide_graph()
    (layer,) = find_layers(model, {"x": "canvas"})
    form, cache = BoardForm(), ()
    grid = form.make_grid(matrix.T, None)
    recipe = GraphRecipe(layers={layer.name: LayerRecipe(precision="int4")})
    if half:
        made = form.quantised(model, [layer], recipe, cache, {layer.name: grid})
    else:
        made = quantize(model, [layer], recipe, {layer.name: grid})
    require_clean(made, "wide")
    x = np.random.default_rng(1).standard_normal((1, 3, 128)).astype(np.float32)
    (found,) = run(made, {"x": x})
    np.testing.assert_allclose(found, x @ grid.values().T, atol=2e-2 if half else 1e-5)
    (reference,) = ReferenceEvaluator(ir.to_proto(made)).run(None, {"x": x})
    np.testing.assert_allclose(found, reference, atol=2e-2 if half else 1e-5)
    stored = made.graph.initializers["model.wide.weight.int4"].const_value
    assert len(stored.tobytes()) == matrix.size // 2


def test_two_independent_runtimes_agree():
    model = small_graph()
    made = quantize(model, *chosen(model, **{"mlp.up": OUTLIERS}))
    canvas = ids()
    (reference,) = ReferenceEvaluator(ir.to_proto(made)).run(None, {"ids": canvas})
    np.testing.assert_allclose(run(made, {"ids": canvas})[0], reference, atol=1e-5)


def test_a_layer_chosen_as_float_keeps_its_bytes():
    model = small_graph()
    layers, recipe = chosen(model, **{"mlp.up": {"precision": "float"}})
    made = quantize(model, layers, recipe)
    kept = weights_of(made)["model.mlp.up.weight"]
    assert kept.dtype == np.float32
    assert kept.shape == (WIDTH, HIDDEN)
    assert len(ops(made, "QuantizeLinear")) == 1


def test_a_tied_head_may_multiply_integers_while_its_embedding_is_looked_up():
    model = small_graph()
    layers, recipe = chosen(model, embed={"precision": "int8", "scale": 0.03})
    made = quantize(model, layers, recipe)
    assert len(ops(made, "QuantizeLinear")) == 3
    assert sum(array.shape == (VOCAB, WIDTH) for array in weights_of(made).values()) == 1


def test_a_scale_beyond_float16_is_refused_with_the_layers_name():
    model = small_graph()
    layers, recipe = chosen(model, **{"mlp.up": {"precision": "int8", "scale": 1e6}})
    with pytest.raises(CalibrationError, match=r"mlp\.up.*float16"):
        quantize(model, layers, recipe)
    # 515.7 is rounded to 516 in float16, of which 127 are beyond it.
    layers, recipe = chosen(model, **{"mlp.up": {"precision": "int8", "scale": 515.7}})
    with pytest.raises(CalibrationError, match=r"mlp\.up.*float16"):
        quantize(model, layers, recipe)
    layers, recipe = chosen(model, **{"mlp.up": {"precision": "int8"}})
    with pytest.raises(CalibrationError, match=r"mlp\.up.*has no scale"):
        quantize(model, layers, recipe)
