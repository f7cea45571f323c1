import json
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import small_graphs
from dlm_edge.calibration.canvases.canvases import CanvasSet, Inputs, RecordedRun
from dlm_edge.calibration.forms.board import BoardForm
from dlm_edge.calibration.forms.cpu import CpuForm
from dlm_edge.calibration.forms.qdq import quantize
from dlm_edge.calibration.graphs import values_of
from dlm_edge.calibration.recipe import apply_edits, recipe_bytes
from dlm_edge.calibration.scales.calibrate import Calibrator
from dlm_edge.calibration.scales.outliers import SLACKS
from dlm_edge.runtime.bundle.manifest import TensorSpec
from dlm_edge.runtime.errors import CalibrationError
from manifests import bare_spec
from onnx.reference import ReferenceEvaluator
from small_graphs import ROLES, data_of, ids, set_weight, small_graph, weights_of


def canvas(seed):
    return RecordedRun(
        spec=bare_spec("small", 6, 8),
        inputs=Inputs({"ids": ids(seed=seed)}),
        mask_ratio=seed / 10,
        progress=1.0,
        committing=np.ones(6, bool),
        weight=1.0,
        source="decode",
    )


CANVASES = CanvasSet(items=tuple(canvas(seed) for seed in range(6)), model_sha256="", recipe={})
OTHERS = CanvasSet(items=tuple(canvas(seed) for seed in range(6, 11)), model_sha256="", recipe={})


class PlainForm(BoardForm):
    """Q/DQ without float16, so that a reference evaluator can be compared with float32."""

    def quantised(self, model, layers, recipe, cache, grids):
        return quantize(model, layers, recipe)


def calibrator(model, form=None, precision="int8"):
    shapes = {"ids": (1, 6)}
    inputs = tuple(
        TensorSpec(name=name, dtype="int32", shape=shapes.get(name, (1,)), role=role)
        for name, role in ROLES.items()
    )
    spec = replace(bare_spec("small", 6, 8), inputs=inputs)
    return Calibrator({"small": model}, [spec], form or PlainForm(), "board", precision)


def scores(model, seed=0):
    return ReferenceEvaluator(ir.to_proto(model)).run(None, {"ids": ids(seed=seed)})[0]


def test_every_int8_layer_gets_a_scale_that_covers_what_was_seen():
    model = small_graph()
    work = calibrator(model)
    fitted = work.fit(work.default_recipe({}), CANVASES)
    recipe = fitted.recipe.graphs["small"]
    largest = work.largest(fitted, CANVASES)["small"]
    assert set(largest) == {"embed", "mlp.up", "mlp.down"}
    assert set(largest["mlp.up"]) == set(range(6))
    for name in ("mlp.up", "mlp.down"):
        top = max(largest[name].values())
        assert 0.3 * top < 127 * recipe.layers[name].scale <= 1.001 * top
        assert recipe.layers[name].observer in ("minmax", "percentile", "mse", "entropy")
    assert recipe.layers["embed"].scale is None
    made = work.quantised(fitted, fitted.recipe)["small"]
    assert np.abs(scores(made) - scores(model)).max() < 0.05


def uneven_graph():
    """A graph that gains from folding: one channel is far above the others."""
    model = small_graph()
    gains = np.ones(small_graphs.WIDTH, np.float32)
    gains[3] = 40.0
    set_weight(model, "model.norm.weight", gains)
    return model


def test_smoothed_graphs_compute_the_same():
    model = uneven_graph()
    work = calibrator(model)
    fitted = work.fit(work.default_recipe({}), CANVASES)
    assert fitted.recipe.graphs["small"].layers["mlp.up"].alpha is not None
    np.testing.assert_allclose(scores(fitted.models["small"]), scores(model), atol=1e-4)


def test_what_a_recipe_says_stays():
    work = calibrator(small_graph())
    recipe = work.default_recipe({"small": ("sum",)})
    recipe = recipe.with_layer("small", "mlp.up", scale=0.125, alpha=0.4)
    recipe = recipe.with_layer("small", "mlp.down", precision="float", reason="recipe")
    fitted = work.fit(recipe, CANVASES).recipe.graphs["small"]
    assert (fitted.layers["mlp.up"].scale, fitted.layers["mlp.up"].alpha) == (0.125, 0.4)
    assert fitted.layers["mlp.up"].observer == "recipe"
    assert fitted.layers["mlp.down"].precision == "float"
    assert fitted.layers["mlp.down"].scale is None
    assert fitted.float32 == ("sum",)


@pytest.mark.parametrize("folded", [True, False])
def test_a_recipe_that_comes_back_is_kept_whatever_canvases_say(folded):
    """Also where nothing was folded, although folding would gain."""
    work = calibrator(uneven_graph())
    whole = work.default_recipe({})
    recipe = work.fit(whole, CANVASES).recipe
    if not folded:
        for name in ("mlp.up", "mlp.down"):
            recipe = recipe.with_layer("small", name, alpha=None)
    edits = json.loads(recipe_bytes(recipe))["graphs"]
    values = {"small": values_of(work.models["small"])}
    back = work.fit(apply_edits(whole, edits, work.layers, values), OTHERS)
    for name, layer in back.recipe.graphs["small"].layers.items():
        before = recipe.graphs["small"].layers[name]
        assert (layer.alpha, layer.scale) == (before.alpha, before.scale)
    same = data_of(back.models["small"]) == data_of(work.models["small"])
    assert same != folded


def test_int4_of_a_folded_layer_is_made_of_the_folded_matrix(monkeypatch):
    monkeypatch.setattr(small_graphs, "WIDTH", 32)
    monkeypatch.setattr(small_graphs, "HIDDEN", 32)
    work = calibrator(uneven_graph(), CpuForm())
    recipe = work.default_recipe({}).with_layer("small", "mlp.up", precision="int4", alpha=0.5)
    fitted = work.fit(recipe, CANVASES)
    name = "model.mlp.up.weight"
    folded, plain = weights_of(fitted.models["small"])[name], weights_of(work.models["small"])[name]
    stored = fitted.grids["small"]["mlp.up"].values().T
    assert np.square(stored - folded).mean() < 0.1 * np.square(stored - plain).mean()


@pytest.mark.parametrize("outliers", [*SLACKS, None])
def test_outliers_of_a_recipe_stay_and_nothing_is_folded_there(outliers):
    work = calibrator(uneven_graph(), CpuForm())
    plain = work.default_recipe({})
    assert work.fit(plain, CANVASES).recipe.graphs["small"].layers["mlp.up"].alpha is not None
    recipe = plain.with_layer("small", "mlp.up", outliers=(1, 3))
    found = work.fit(recipe, CANVASES, outliers=outliers).recipe.graphs["small"].layers["mlp.up"]
    assert (found.outliers, found.alpha) == ((1, 3), None)


def test_layers_are_sorted_by_what_their_products_lose():
    model = small_graph()
    work = calibrator(model, CpuForm())
    fitted = work.fit(work.default_recipe({}), CANVASES)
    every = work.costliest(fitted, CANVASES, fitted.recipe, 9)
    assert {name for _, name in every} == {"embed", "mlp.up", "mlp.down"}
    assert work.costliest(fitted, CANVASES, fitted.recipe, 2) == every[:2]
    recipe = fitted.recipe.with_layer("small", every[0][1], precision="float")
    assert work.costliest(fitted, CANVASES, recipe, 9) == every[1:]


def test_which_products_lose_most_does_not_depend_on_what_was_fitted_last():
    work = calibrator(uneven_graph(), CpuForm())
    fitted = work.fit(work.default_recipe({}), CANVASES)
    before = work.costliest(fitted, CANVASES, fitted.recipe, 9)
    one_token = replace(canvas(0), inputs=Inputs({"ids": np.zeros((1, 6), np.int32)}))
    others = replace(CANVASES, items=(one_token,))
    work.fit(work.default_recipe({}), others)
    assert work.costliest(fitted, CANVASES, fitted.recipe, 9) == before
    assert work.costliest(fitted, others, fitted.recipe, 9) != before


def test_int4_that_no_layer_can_have_is_refused():
    work = calibrator(small_graph(), precision="int4")  # of 8 and 16 inputs
    with pytest.raises(CalibrationError, match=r"no layer can be int4 for board.*choose int8"):
        work.default_recipe({})


def test_a_fixed_scale_is_that_of_the_channels_which_are_rounded():
    work = calibrator(uneven_graph())
    recipe = work.default_recipe({})
    apart = recipe.with_layer("small", "mlp.up", outliers=(3,))
    plain, fitted = (
        work.fit(item, CANVASES, outliers=SLACKS[0]).recipe.graphs["small"].layers["mlp.up"]
        for item in (recipe, apart)
    )
    assert 0 < fitted.scale < plain.scale / 5


def test_outliers_of_a_tied_matrix_are_refused_on_a_board():
    work = calibrator(small_graph())
    recipe = work.default_recipe({}).with_layer("small", "embed", precision="int8", outliers=(1,))
    with pytest.raises(CalibrationError, match=r"embed of the recipe has outliers, but.*remove"):
        work.require_possible(recipe)


def test_an_alpha_that_nothing_can_take_is_refused():
    work = calibrator(small_graph())
    with pytest.raises(CalibrationError, match="embed has an alpha"):
        work.fit(work.default_recipe({}).with_layer("small", "embed", alpha=0.5), CANVASES)


def test_a_recipe_whose_runs_scale_themselves_gets_no_scales():
    work = calibrator(small_graph(), CpuForm())
    fitted = work.fit(work.default_recipe({}), CANVASES)
    assert all(layer.scale is None for _, _, layer in fitted.recipe.layers())


def test_progress_counts_every_canvas_of_both_rounds():
    work = calibrator(small_graph())
    told = []
    work.fit(work.default_recipe({}), CANVASES, lambda done, total: told.append((done, total)))
    assert told[0] == (1, 12)
    assert told[-1] == (12, 12)
