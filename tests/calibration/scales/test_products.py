"""What rounding both sides of a product does to it."""

import numpy as np
import pytest
from dlm_edge.calibration.scales.activations import Activation, Histogram
from dlm_edge.calibration.scales.products import Products


def activation(rows):
    rows = np.asarray(rows, np.float32)
    return Activation(
        histogram=Histogram(),
        channel_max=np.abs(rows).max(axis=0),
        rows=rows,
        row_weights=np.ones(len(rows)),
        max_by_decile={},
        is_constant=False,
    )


def test_large_channels_cost_most_of_the_product_until_they_are_apart():
    rng, places = np.random.default_rng(0), (3, 50, 90)
    rows, matrix = rng.standard_normal((64, 768)), rng.standard_normal((768, 24))
    rows[:, places] *= 1000
    matrix[list(places)] /= 1000
    products = Products(activation(rows), [matrix.astype(np.float32)])
    for dynamic in (True, False):
        assert products.error(dynamic=dynamic) > 0.3
        assert products.error(dynamic=dynamic, outliers=places) < 3e-4


@pytest.mark.parametrize("dynamic", [True, False])
def test_the_error_is_that_of_the_arithmetic_by_hand(dynamic):
    matrix = np.array([[127.0], [20.3], [1.0]], np.float32)
    products = Products(activation([[127.0, 63.4, 9000.0]]), [matrix])
    # Steps are 1 on both sides: 63.4 becomes 63 and 20.3 becomes 20.
    off = 63 * 20 - 63.4 * 20.3
    whole = 127 * 127 + 63.4 * 20.3 + 9000
    error = products.error(dynamic=dynamic, outliers=(2,))
    assert error == pytest.approx((off / whole) ** 2, rel=1e-2)


def test_a_fixed_scale_is_that_of_the_largest_row():
    products = Products(activation([[127.0], [0.4]]), [np.array([[127.0]], np.float32)])
    whole = (127.0**2 + 0.4**2) * 127.0**2
    assert products.error(dynamic=True) == pytest.approx(0.0, abs=1e-12)
    assert products.error(dynamic=False) == pytest.approx((0.4 * 127.0) ** 2 / whole, rel=1e-3)


def test_factors_move_the_spread_of_channels_into_the_matrix():
    rows, matrix = [[127.0, 0.4]], np.array([[1.0], [1.0]], np.float32)
    products = Products(activation(rows), [matrix])
    assert products.error(dynamic=True) == pytest.approx((0.4 / 127.4) ** 2, rel=1e-3)
    even = np.array([127.0, 0.4])
    # Rows become (1, 1), exact; the matrix (127, 0.4) loses the second channel instead.
    assert products.error(dynamic=True, factors=even) == pytest.approx((0.4 / 127.4) ** 2, rel=1e-3)


@pytest.mark.parametrize("dynamic", [False, True])
def test_activations_of_nothing_but_zeros_have_no_error_and_no_warning(dynamic):
    seen = activation(np.zeros((2, 3)))
    with np.errstate(all="raise"):
        assert Products(seen, [np.ones((3, 4), np.float32)]).error(dynamic=dynamic) == 0.0
