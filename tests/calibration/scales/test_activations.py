"""Statistics over canvases against sums made by hand."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from dlm_edge.calibration.canvases.canvases import Inputs, RecordedRun
from dlm_edge.calibration.layers import find_layers
from dlm_edge.calibration.scales.activations import (
    MAX_ROWS,
    NUM_BINS,
    Activation,
    Histogram,
    collect,
    layer_inputs,
)
from dlm_edge.runtime.errors import CalibrationError
from manifests import bare_spec
from small_graphs import ROLES, data_of, ids, set_weight, small_graph, weights_of


def canvas(tokens, *, ratio=0.5, committing=(), weight=1.0, graph="small"):
    block = tokens.shape[1]
    marks = np.zeros(block, bool)
    marks[list(committing)] = True
    return RecordedRun(
        spec=bare_spec(graph, block, 8),
        inputs=Inputs({"ids": tokens}),
        mask_ratio=ratio,
        progress=0.0,
        committing=marks,
        weight=weight,
        source="decode",
    )


@pytest.fixture
def model():
    return small_graph()


def test_histogram_counts_what_numpy_counts_however_the_range_grows():
    rng = np.random.default_rng(0)
    parts = [np.abs(rng.standard_normal(500)) * size for size in (0.0, 1.0, 0.3, 40.0)]
    weights = [rng.uniform(0.5, 3.0, 500) for _ in parts]
    histogram = Histogram()
    for part, weight in zip(parts, weights, strict=True):
        histogram.add(part, weight)
    values, total = np.concatenate(parts), np.concatenate(weights)
    edges = np.arange(NUM_BINS + 1) * histogram.width
    expected, _ = np.histogram(values, bins=edges, weights=total)
    assert histogram.total == pytest.approx(total.sum())
    assert histogram.maximum == values.max()
    assert histogram.width * NUM_BINS / 2 < values.max() <= histogram.width * NUM_BINS
    # A value within rounding of an edge may fall to either side.
    assert np.abs(np.cumsum(histogram.counts) - np.cumsum(expected)).max() < 4.0


def test_histogram_of_zeros_has_no_width_until_something_comes():
    histogram = Histogram()
    histogram.add(np.zeros(5), np.ones(5))
    assert (histogram.width, histogram.total) == (0.0, 5.0)
    histogram.add(np.array([2.0]), np.ones(1))
    assert histogram.counts[0] == 5.0
    assert histogram.total == 6.0


def test_collected_values_are_the_graphs_own(model):
    arrays = weights_of(model)
    tokens = [ids(seed=seed) for seed in range(3)]
    found = collect(model, [canvas(item) for item in tokens], {"normed": "mlp.up"})["normed"]
    looked_up = np.concatenate([arrays["model.embed.weight"][item[0]] for item in tokens])
    values = looked_up * arrays["model.norm.weight"]
    assert found.histogram.maximum == pytest.approx(np.abs(values).max())
    assert found.channel_max == pytest.approx(np.abs(values).max(axis=0))
    assert found.histogram.total == pytest.approx(values.size)
    # The sample holds every row here, since there are few.
    assert np.sort(found.rows, axis=0) == pytest.approx(np.sort(values, axis=0))


def test_late_canvases_and_committing_positions_weigh_more(model):
    first, second = ids(seed=0), ids(seed=1)
    items = [canvas(first, weight=1.0), canvas(second, weight=2.0, committing=(0, 3))]
    found = collect(model, items, {"normed": "mlp.up"})["normed"]
    width = found.rows.shape[1]
    assert found.histogram.total == pytest.approx(width * (6 * 1.0 + 6 * 2.0 + 2 * 2.0))
    assert found.row_weights.sum() == pytest.approx(6 * 1.0 + 6 * 2.0 + 2 * 2.0)


def test_largest_magnitude_is_kept_per_mask_ratio(model):
    items = [canvas(ids(seed=0), ratio=0.0), canvas(ids(seed=1), ratio=0.95)]
    found = collect(model, items, {"normed": "up"})["normed"]
    alone = collect(model, items[1:], {"normed": "up"})["normed"]
    assert sorted(found.max_by_decile) == [0, 10]
    assert found.max_by_decile[10] == alone.histogram.maximum


def test_sample_of_rows_is_bounded_and_the_same_for_a_seed(model):
    items = [canvas(ids(block=50, seed=seed)) for seed in range(40)]
    one, two, other = (
        collect(model, items, {"normed": "up"}, seed=seed)["normed"].rows for seed in (0, 0, 1)
    )
    assert len(one) <= MAX_ROWS
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_the_graph_given_is_not_changed(model):
    before = data_of(model)
    collect(model, [canvas(ids())], {"normed": "up"})
    assert data_of(model) == before


def test_each_value_is_named_after_the_first_layer_it_enters(model):
    assert layer_inputs(find_layers(model, ROLES)) == {
        "sum": "embed",
        "normed": "mlp.up",
        "gate": "mlp.down",
    }


@pytest.mark.parametrize(
    ("poison", "weight", "layer"), [(np.nan, "up", r"mlp\.down"), (np.inf, "down", "embed")]
)
def test_a_value_that_is_not_finite_is_refused_with_the_layers_name(model, poison, weight, layer):
    name = f"model.mlp.{weight}.weight"
    array = weights_of(model)[name].copy()
    array[0, 0] = poison
    set_weight(model, name, array)
    with pytest.raises(CalibrationError, match=f"what enters layer {layer} is NaN") as caught:
        collect(model, [canvas(ids())], layer_inputs(find_layers(model, ROLES)))
    assert "\n" not in str(caught.value)
    assert "noise 50%" in str(caught.value)


def test_canvases_of_another_graph_are_refused(model):
    with pytest.raises(CalibrationError, match="no canvas of graph small"):
        collect(model, [canvas(ids(), graph="other")], {"normed": "up"})


def test_a_constant_value_is_known_as_one(model):
    set_weight(model, "model.norm.weight", np.zeros(8, np.float32))
    found = collect(model, [canvas(ids()), canvas(ids(seed=1))], {"normed": "a", "sum": "b"})
    assert found["normed"].is_constant
    assert not found["sum"].is_constant
    assert isinstance(found["sum"], Activation)
    onnx.checker.check_model(ir.to_proto(model))
