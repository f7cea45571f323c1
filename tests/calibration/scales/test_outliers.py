"""Which channels are kept apart, and how many."""

import numpy as np
from dlm_edge.calibration.layers import find_layers
from dlm_edge.calibration.scales.activations import Activation, Histogram
from dlm_edge.calibration.scales.outliers import COUNTS, choose_outliers
from small_graphs import ROLES, set_weight, small_graph

WIDTH = 768


def activation(rows):
    return Activation(
        histogram=Histogram(),
        channel_max=np.abs(rows).max(axis=0).astype(np.float32),
        rows=rows.astype(np.float32),
        row_weights=np.ones(len(rows)),
        max_by_decile={},
        is_constant=False,
    )


def planted(places, factor=1000.0):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((64, WIDTH))
    rows[:, list(places)] *= factor
    matrix = rng.standard_normal((WIDTH, 24)).astype(np.float32)
    matrix[list(places)] /= factor
    return activation(rows), matrix


def chosen(seen, matrix):
    model = small_graph()
    set_weight(model, "model.mlp.down.weight", matrix)
    layers = [layer for layer in find_layers(model, ROLES) if layer.name == "mlp.down"]
    return choose_outliers(model, layers, {layers[0].inputs[0]: seen}, dynamic=True)["mlp.down"]


def test_planted_channels_are_found_and_no_more_than_needed():
    places = (3, 50, 90)
    found = chosen(*planted(places))
    assert len(found) == COUNTS[1]
    assert set(places) <= set(found)
    assert list(found) == sorted(found)


def test_a_value_without_large_channels_has_no_outliers():
    assert chosen(*planted(())) == ()
