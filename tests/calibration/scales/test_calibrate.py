import json

import numpy as np
import onnx
import pytest
from dlm_edge.calibration.canvases.canvases import Canvas, CanvasSet, Inputs
from dlm_edge.calibration.scales.calibrate import Calibrator, Recipe
from dlm_edge.calibration.scales.plan import apply_edits, default_plan, plan_bytes
from dlm_edge.calibration.scales.qdq import quantize
from dlm_edge.runtime.errors import CalibrationError
from manifests import bare_spec
from onnx.reference import ReferenceEvaluator
from small_graphs import ROLES, ids, small_graph


def canvas(seed):
    return Canvas(
        spec=bare_spec("small", 6, 8),
        inputs=Inputs({"ids": ids(seed=seed)}),
        mask_ratio=seed / 10,
        progress=1.0,
        frontier=np.ones(6, bool),
        weight=1.0,
        source="decode",
    )


CANVASES = CanvasSet(items=tuple(canvas(seed) for seed in range(6)), model_sha256="", recipe={})
OTHERS = CanvasSet(items=tuple(canvas(seed) for seed in range(6, 11)), model_sha256="", recipe={})


def calibrator(model, **changes):
    recipe = Recipe(
        target="board",
        default_plan=default_plan,
        build=quantize,
        build_fp16=lambda model, names: model,
        half_values=lambda model: (),
        **changes,
    )
    return Calibrator({"small": model}, {"small": ROLES}, recipe)


def scores(model, seed=0):
    return ReferenceEvaluator(model).run(None, {"ids": ids(seed=seed)})[0]


def test_every_int8_layer_gets_a_scale_that_covers_what_was_seen():
    model = small_graph()
    work = calibrator(model)
    fitted = work.fit(work.default_plan({}), CANVASES)
    plan = fitted.plan.graphs["small"]
    largest = work.largest(fitted, CANVASES)["small"]
    assert set(largest) == {"embed", "mlp.up", "mlp.down"}
    assert set(largest["mlp.up"]) == set(range(6))
    for name in ("mlp.up", "mlp.down"):
        top = max(largest[name].values())
        assert 0.3 * top < 127 * plan.layers[name].scale <= 1.001 * top
        assert plan.layers[name].observer in ("minmax", "percentile", "mse", "entropy")
    assert plan.layers["embed"].scale is None
    made = work.build(fitted, fitted.plan)["small"]
    assert np.abs(scores(made) - scores(model)).max() < 0.05


def uneven_graph():
    """A graph that gains from folding: one channel is far above the others."""
    model = small_graph()
    for item in model.graph.initializer:
        if item.name == "model.norm.weight":
            gains = np.ones(8, np.float32)
            gains[3] = 40.0
            item.CopyFrom(onnx.numpy_helper.from_array(gains, item.name))
    return model


def test_smoothed_graphs_compute_the_same():
    model = uneven_graph()
    work = calibrator(model)
    fitted = work.fit(work.default_plan({}), CANVASES)
    assert fitted.plan.graphs["small"].layers["mlp.up"].alpha is not None
    np.testing.assert_allclose(scores(fitted.models["small"]), scores(model), atol=1e-4)


def test_what_a_plan_says_stays():
    work = calibrator(small_graph())
    plan = work.default_plan({"small": ("sum",)})
    plan = plan.with_layer("small", "mlp.up", scale=0.125, alpha=0.4)
    plan = plan.with_layer("small", "mlp.down", precision="float", reason="plan")
    fitted = work.fit(plan, CANVASES).plan.graphs["small"]
    assert (fitted.layers["mlp.up"].scale, fitted.layers["mlp.up"].alpha) == (0.125, 0.4)
    assert fitted.layers["mlp.up"].observer == "plan"
    assert fitted.layers["mlp.down"].precision == "float"
    assert fitted.layers["mlp.down"].scale is None
    assert fitted.float32 == ("sum",)


@pytest.mark.parametrize("folded", [True, False])
def test_a_plan_that_comes_back_is_kept_whatever_canvases_say(folded):
    """Also where nothing was folded, although folding would gain."""
    work = calibrator(uneven_graph())
    whole = work.default_plan({})
    plan = work.fit(whole, CANVASES).plan
    if not folded:
        for name in ("mlp.up", "mlp.down"):
            plan = plan.with_layer("small", name, alpha=None)
    edits = json.loads(plan_bytes(plan))["graphs"]
    values = {"small": {node.output[0] for node in work.models["small"].graph.node}}
    back = work.fit(apply_edits(whole, edits, work.layers, values), OTHERS)
    for name, layer in back.plan.graphs["small"].layers.items():
        before = plan.graphs["small"].layers[name]
        assert (layer.alpha, layer.scale) == (before.alpha, before.scale)
    assert (back.models["small"] != work.models["small"]) == folded


def test_an_alpha_that_nothing_can_take_is_refused():
    work = calibrator(small_graph())
    with pytest.raises(CalibrationError, match="embed has an alpha"):
        work.fit(work.default_plan({}).with_layer("small", "embed", alpha=0.5), CANVASES)


def test_a_recipe_whose_runs_scale_themselves_gets_no_scales():
    work = calibrator(small_graph(), dynamic=True)
    fitted = work.fit(work.default_plan({}), CANVASES)
    assert all(layer.scale is None for _, _, layer in fitted.plan.layers())


def test_progress_counts_every_canvas_of_both_rounds():
    work = calibrator(small_graph())
    told = []
    work.fit(work.default_plan({}), CANVASES, lambda done, total: told.append((done, total)))
    assert told[0] == (1, 12)
    assert told[-1] == (12, 12)
