"""Which channels are kept apart, and how many."""

import numpy as np
import pytest
from dlm_edge.calibration.layers import find_layers
from dlm_edge.calibration.scales.activations import Activation, Histogram
from dlm_edge.calibration.scales.outliers import COUNTS, choose_outliers, quantised_error
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
    return choose_outliers(model, layers, {layers[0].inputs[0]: seen})["mlp.down"]


def test_planted_channels_are_found_and_no_more_than_needed():
    places = (3, 50, 90)
    found = chosen(*planted(places))
    assert len(found) == COUNTS[1]
    assert set(places) <= set(found)
    assert list(found) == sorted(found)


def test_a_value_without_large_channels_has_no_outliers():
    assert chosen(*planted(())) == ()


def test_planted_channels_cost_most_of_the_product_until_they_are_apart():
    places = (3, 50, 90)
    seen, matrix = planted(places)
    plain = quantised_error(seen, [matrix], ())
    assert plain > 0.3
    assert quantised_error(seen, [matrix], places) < 3e-4


def test_the_error_is_that_of_the_arithmetic_by_hand():
    rows = np.array([[127.0, 63.4, 9000.0]])
    matrix = np.array([[127.0], [20.3], [1.0]], np.float32)
    # Steps are 1 on both sides: 63.4 becomes 63 and 20.3 becomes 20.
    off = 63 * 20 - 63.4 * 20.3
    whole = 127 * 127 + 63.4 * 20.3 + 9000
    error = quantised_error(activation(rows), [matrix], (2,))
    assert error == pytest.approx((off / whole) ** 2, rel=1e-3)
