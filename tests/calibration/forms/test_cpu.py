"""The form for CPUs: what its graphs compute, and what its kernels do to 8 bits."""

import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from dlm_edge.calibration.forms.cpu import CpuForm, quantize_for_cpu
from dlm_edge.calibration.layers import find_layers
from dlm_edge.calibration.recipe import GraphRecipe, LayerRecipe
from dlm_edge.runtime.errors import CalibrationError
from small_graphs import (
    ROLES,
    data_of,
    ids,
    quantize_matrix,
    set_weight,
    small_graph,
    weights_of,
)

KERNELS = """
import numpy as np, onnxruntime
from onnx import TensorProto, helper, numpy_helper
weights = numpy_helper.from_array(np.full((64, 32), 127, np.int8), "w")
zero = numpy_helper.from_array(np.array(0, np.uint8), "z")
graph = helper.make_graph(
    [helper.make_node("MatMulInteger", ["a", "w", "z"], ["y"])], "g",
    [helper.make_tensor_value_info("a", TensorProto.UINT8, ["m", 64])],
    [helper.make_tensor_value_info("y", TensorProto.INT32, ["m", 32])], [weights, zero])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
for precise in ("0", "1"):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", precise)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = session.run(None, {"a": np.full((32, 64), 255, np.uint8)})[0]
    print(precise, "exact" if (found == 255 * 127 * 64).all() else "wrong")
"""


def all_as(layers, precision):
    def chosen(layer):
        return precision if precision in layer.precisions else layer.precisions[0]

    return GraphRecipe(layers={item.name: LayerRecipe(precision=chosen(item)) for item in layers})


def session(model, *, optimised=True, save=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if save is not None:
        options.optimized_model_filepath = str(save)
    return onnxruntime.InferenceSession(data_of(model), options, providers=["CPUExecutionProvider"])


def logits(model, tokens, **how):
    return session(model, **how).run(["logits"], {"ids": tokens})[0]


def by_hand(model, tokens, outliers=()):
    """What the integer form should give, in NumPy: a scale per row; `outliers` enter mlp.down."""
    arrays = weights_of(model)

    def product(x, matrix, apart=()):
        kept = np.ones(x.shape[-1], np.float32)
        kept[list(apart)] = 0
        values, scales = quantize_matrix(matrix * kept[:, None], 1)
        step = np.abs(x * kept).max(axis=-1, keepdims=True) / np.float32(127)
        coded = np.rint(x * kept / step).astype(np.int64)
        most = (coded @ values.astype(np.int64)).astype(np.float32) * scales * step
        return most + x[..., list(apart)] @ matrix[list(apart)]

    rows, steps = quantize_matrix(arrays["model.embed.weight"], 0)
    x = rows[tokens].astype(np.float32) * steps[tokens][..., None]
    gate = 1 / (
        1 + np.exp(-product(x * arrays["model.norm.weight"], arrays["model.mlp.up.weight"]))
    )
    x = x + product(gate, arrays["model.mlp.down.weight"], outliers)
    return product(x, arrays["model.embed.weight"].T)


@pytest.mark.parametrize("outliers", [(), (3, 11)])
def test_graph_computes_what_the_arithmetic_says(outliers):
    model = small_graph()
    layers = find_layers(model, ROLES)
    recipe = CpuForm().default_recipe(layers, "int8").with_layer("mlp.down", outliers=outliers)
    made = quantize_for_cpu(model, layers, recipe)
    onnx.checker.check_model(ir.to_proto(made), full_check=True)
    tokens = ids(block=9)
    assert logits(made, tokens) == pytest.approx(by_hand(model, tokens, outliers), abs=2e-5)


@pytest.mark.parametrize("outliers", [(), (3, 11)])
def test_no_row_depends_on_the_others_of_its_run(outliers):
    model = small_graph()
    layers = find_layers(model, ROLES)
    recipe = CpuForm().default_recipe(layers, "int8").with_layer("mlp.down", outliers=outliers)
    made = quantize_for_cpu(model, layers, recipe)
    tokens = ids(block=9)
    whole = logits(made, tokens)
    alone = np.concatenate([logits(made, tokens[:, i : i + 1]) for i in range(9)], axis=1)
    assert np.array_equal(whole, alone)


@pytest.mark.parametrize("outliers", [(), (3, 11)])
def test_no_text_depends_on_the_others_of_its_batch(outliers):
    model = small_graph()
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = ir.Shape(["batch", *list(value.shape)[1:]])
    layers = find_layers(model, ROLES)
    recipe = CpuForm().default_recipe(layers, "int8").with_layer("mlp.down", outliers=outliers)
    made = quantize_for_cpu(model, layers, recipe)
    tokens = np.concatenate([ids(block=5, seed=seed) for seed in range(3)])
    alone = np.concatenate([logits(made, tokens[i : i + 1]) for i in range(3)])
    assert np.array_equal(logits(made, tokens), alone)


def test_channels_a_thousand_times_as_large_ruin_the_product_unless_they_are_apart():
    model = small_graph()
    layers = find_layers(model, ROLES)
    gain = np.ones(8, np.float32)
    gain[2] = 1000
    set_weight(model, "model.norm.weight", gain)
    # What the channel carries is as large as the rest.
    up = weights_of(model)["model.mlp.up.weight"].copy()
    up[2] /= 1000
    set_weight(model, "model.mlp.up.weight", up)
    exact = logits(model, ids())
    recipe = all_as(layers, "float")

    def loss(**changes):
        made = quantize_for_cpu(model, layers, recipe.with_layer("mlp.up", **changes))
        return np.abs(logits(made, ids()) - exact).max() / np.abs(exact).max()

    plain = loss(precision="int8")
    assert loss(precision="int8", outliers=(2,)) < 0.01 < 0.05 < plain


def test_a_row_of_zeros_stays_one():
    model = small_graph()
    layers = find_layers(model, ROLES)
    set_weight(model, "model.norm.weight", np.zeros(8, np.float32))
    made = quantize_for_cpu(model, layers, CpuForm().default_recipe(layers, "int8"))
    assert np.isfinite(logits(made, ids())).all()


@pytest.mark.parametrize("tied", [True, False])
def test_optimising_the_session_changes_nothing(tied):
    model = small_graph(tied=tied)
    layers = find_layers(model, ROLES)
    made = quantize_for_cpu(model, layers, all_as(layers, "int8-weight"))
    plain = logits(made, ids(), optimised=False)
    assert logits(made, ids()) == pytest.approx(plain, abs=1e-5)
    exact = logits(model, ids())
    assert np.abs(plain - exact).max() < 0.05 * np.abs(exact).max()
    assert np.abs(plain - exact).max() > 0


def test_weights_stored_as_int8_are_folded_while_loading(tmp_path):
    model = small_graph()
    layers = find_layers(model, ROLES)
    made = quantize_for_cpu(model, layers, all_as(layers, "int8-weight"))
    session(made, save=tmp_path / "optimised.onnx")
    counts = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert counts["Cast"] == 1  # the embedding's rows, of which few are read
    assert counts["MatMul"] + counts["FusedMatMul"] == 3


def test_a_tied_embedding_is_stored_once_and_no_float_matrix_stays():
    model = small_graph()
    layers = find_layers(model, ROLES)
    arrays = weights_of(quantize_for_cpu(model, layers, CpuForm().default_recipe(layers, "int8")))
    large = [array for array in arrays.values() if array.ndim == 2]
    assert {array.dtype for array in large} == {np.dtype(np.int8)}
    assert len(large) == 3


def test_layers_chosen_as_float_stay_as_they_are():
    model = small_graph()
    layers = find_layers(model, ROLES)
    made = quantize_for_cpu(model, layers, all_as(layers, "float"))
    assert np.array_equal(logits(made, ids()), logits(model, ids()))
    recipe = CpuForm().default_recipe(layers, "int8").with_layer("mlp.up", precision="float")
    kept = weights_of(quantize_for_cpu(model, layers, recipe))
    assert "model.mlp.up.weight" in kept
    assert "model.mlp.down.weight" not in kept


def test_the_graph_given_is_not_changed():
    model = small_graph()
    before = data_of(model)
    layers = find_layers(model, ROLES)
    quantize_for_cpu(model, layers, CpuForm().default_recipe(layers, "int8"))
    assert data_of(model) == before


def test_paths_that_the_canvas_does_not_reach_stay_float():
    layers = find_layers(small_graph(timed=True), ROLES)
    recipe = CpuForm().default_recipe(layers, "int8")
    assert recipe.layers["time"].precision == "float"
    assert {name for name, item in recipe.layers.items() if item.precision == "int8"} == {
        "embed",
        "mlp.up",
        "mlp.down",
    }


def test_a_fixed_scale_is_refused():
    model = small_graph()
    layers = find_layers(model, ROLES)
    recipe = CpuForm().default_recipe(layers, "int8").with_layer("mlp.up", scale=0.1)
    with pytest.raises(CalibrationError, match=r"layer mlp\.up of the recipe has a fixed scale"):
        quantize_for_cpu(model, layers, recipe)


@pytest.mark.parametrize("axis", [0, 1])
def test_matrix_is_within_half_a_step_and_its_largest_is_kept(axis):
    array = np.random.default_rng(0).standard_normal((7, 9)).astype(np.float32)
    array[:, 2] = 0 if axis == 1 else array[:, 2]
    values, scales = quantize_matrix(array, axis)
    steps = np.expand_dims(scales, 1 - axis)
    assert np.abs(values * steps - array).max() <= 0.5001 * scales.max()
    largest = np.abs(values).max(axis=1 - axis)
    assert set(largest.tolist()) <= {0, 127}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind stands in for an older CPU")
def test_the_precise_mode_is_exact_where_kernels_without_vnni_saturate():
    """Valgrind shows programs an AVX2 machine without VNNI, so ONNX Runtime takes those kernels."""
    command = ["valgrind", "-q", "--tool=none", sys.executable, "-c", KERNELS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=True)
    assert done.stdout.split() == ["0", "wrong", "1", "exact"]
