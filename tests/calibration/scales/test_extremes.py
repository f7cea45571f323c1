import numpy as np
import onnx_ir as ir
import pytest
from dlm_edge.calibration.canvases.canvases import Inputs, RecordedRun
from dlm_edge.calibration.layers import find_layers
from dlm_edge.calibration.scales.extremes import beyond_float16, largest_values, unsound_layer
from dlm_edge.runtime.errors import CalibrationError
from manifests import bare_spec
from onnx.reference import ReferenceEvaluator
from small_graphs import ROLES, ids, set_weight, small_graph, weights_of

NAMES = ["x", "up", "down", "logits"]


def canvas(seed, mask_ratio=0.0):
    return RecordedRun(
        spec=bare_spec("small", 6, 8),
        inputs=Inputs({"ids": ids(seed=seed)}),
        mask_ratio=mask_ratio,
        progress=1.0,
        committing=np.ones(6, bool),
        weight=1.0,
        source="decode",
    )


def with_weight(name, change):
    model = small_graph()
    set_weight(model, name, change(weights_of(model)[name].copy()).astype(np.float32))
    return model


def test_the_largest_magnitude_of_each_value_is_found_by_mask_ratio():
    model = small_graph()
    canvases = [canvas(0), canvas(1), canvas(2, 0.5)]
    found = largest_values(model, canvases, NAMES)
    shown = ir.to_proto(small_graph())
    for name in NAMES[:-1]:
        shown.graph.output.add().name = name
    evaluator = ReferenceEvaluator(shown)
    runs = [
        dict(zip(NAMES, evaluator.run(NAMES, dict(item.inputs)), strict=True)) for item in canvases
    ]
    for name in NAMES:
        plain = max(np.abs(run[name]).max() for run in runs[:2])
        assert found[name] == pytest.approx({0: plain, 5: np.abs(runs[2][name]).max()}, rel=1e-5)
    assert [output.name for output in model.graph.outputs] == ["logits"]
    assert beyond_float16(found) == ()


def test_values_near_the_end_of_float16_count_as_beyond_it():
    assert beyond_float16({"a": {0: 1.0, 3: 4e4}, "b": {0: 3e4}, "c": {}}) == ("a",)


def test_a_large_product_is_named():
    model = with_weight("model.mlp.up.weight", lambda array: array * 1e6)
    found = largest_values(model, [canvas(0)], NAMES)
    assert beyond_float16(found) == ("up",)


def test_nan_names_the_first_layer_that_computes_it():
    def broken(array):
        array[0, 0] = np.nan
        return array

    model = with_weight("model.mlp.down.weight", broken)
    with pytest.raises(CalibrationError, match=r"^layer mlp\.down gives NaN"):
        largest_values(model, [canvas(0)], NAMES)


@pytest.mark.parametrize(
    ("weight", "change", "words"),
    [
        ("model.embed.weight", 1e39, "layer embed gives"),
        ("model.norm.weight", np.inf, "what enters layer mlp.up is"),
        ("model.mlp.up.weight", np.nan, "layer mlp.up gives"),
        ("model.mlp.down.weight", 1e39, "layer mlp.down gives"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_the_layer_where_numbers_end_is_named(weight, change, words):
    model = with_weight(weight, lambda array: array * change)
    layers = find_layers(small_graph(), ROLES)
    assert unsound_layer(model, layers, canvas(0)) == words


def test_a_value_without_a_weight_is_named_after_the_layer_before_it():
    model = with_weight("model.mlp.up.weight", lambda array: array * np.nan)
    with pytest.raises(CalibrationError, match=r"^the Sigmoid gate behind layer mlp\.up gives NaN"):
        largest_values(model, [canvas(0)], ["gate"])
