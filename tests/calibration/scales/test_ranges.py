"""Observers against closed forms and brute force, and the choice between them."""

import numpy as np
import pytest
from dlm_edge.calibration.scales.activations import Activation, Histogram
from dlm_edge.calibration.scales.ranges import (
    LIMIT,
    OBSERVERS,
    choose_range,
    entropy_range,
    mse_range,
    observe,
    percentile_range,
    product_error,
)
from dlm_edge.runtime.errors import CalibrationError


def activation(rows, weights=None):
    rows = np.asarray(rows, np.float32)
    weights = np.ones(len(rows)) if weights is None else np.asarray(weights, float)
    histogram = Histogram()
    histogram.add(np.abs(rows).ravel(), np.repeat(weights, rows.shape[1]))
    return Activation(
        histogram=histogram,
        channel_max=np.abs(rows).max(axis=0),
        rows=rows,
        row_weights=weights,
        max_by_decile={5: float(np.abs(rows).max())},
        is_constant=bool((rows == rows.flat[0]).all()),
    )


def spiked(spike=100.0, seed=0):
    """Normal values with one outlier that hardly matters to a product."""
    rows = np.random.default_rng(seed).standard_normal((400, 16))
    rows[0, 0] = spike
    return rows


def test_percentile_of_a_uniform_value_is_its_quantile():
    values = np.linspace(0, 1, 100_001)[:, None]
    assert percentile_range(activation(values).histogram, 99.0) == pytest.approx(0.99, abs=1e-3)


def test_percentile_counts_weight_and_not_values():
    rows = np.concatenate([np.full((50, 1), 1.0), np.full((50, 1), 4.0)])
    light = activation(rows, np.r_[np.full(50, 99.0), np.full(50, 1.0)])
    assert percentile_range(light.histogram, 98.0) == pytest.approx(1.0, abs=0.01)
    assert percentile_range(activation(rows).histogram, 98.0) == pytest.approx(4.0)


def test_mse_range_of_a_uniform_value_keeps_all_of_it():
    values = np.random.default_rng(0).uniform(-3, 3, (20_000, 1))
    assert mse_range(activation(values).histogram) == pytest.approx(3.0, rel=0.02)


def test_mse_range_is_the_best_of_a_fine_search_over_the_values_themselves():
    rows = spiked(12.0)
    found = mse_range(activation(rows).histogram)

    def error(limit):
        step = limit / LIMIT
        rounded = np.clip(np.rint(rows / step), -LIMIT, LIMIT) * step
        return float(np.square(rounded - rows).sum())

    best = min(error(limit) for limit in np.linspace(0.5, 12.0, 1000))
    assert error(found) <= 1.1 * best


def test_entropy_range_cuts_an_outlier_and_keeps_a_uniform_value():
    assert entropy_range(activation(spiked()).histogram) < 20.0
    uniform = np.random.default_rng(0).uniform(-1, 1, (20_000, 1))
    assert entropy_range(activation(uniform).histogram) > 0.9


def test_no_observer_goes_beyond_the_largest_magnitude():
    for rows in (spiked(), np.random.default_rng(1).laplace(size=(300, 4))):
        largest = float(np.abs(rows.astype(np.float32)).max())
        ranges = observe(activation(rows).histogram)
        assert set(ranges) == set(OBSERVERS)
        assert all(0 < limit <= largest * (1 + 1e-6) for limit in ranges.values())


def test_product_error_is_that_of_the_rounded_product():
    rng = np.random.default_rng(0)
    seen = activation(rng.standard_normal((30, 8)), rng.uniform(1, 2, 30))
    matrix = rng.standard_normal((8, 5))
    scale = 0.1
    rounded = np.clip(np.rint(seen.rows.astype(float) / scale), -128, 127) * scale
    wrong = (seen.row_weights[:, None] * np.square((rounded - seen.rows) @ matrix)).sum()
    right = (seen.row_weights[:, None] * np.square(seen.rows.astype(float) @ matrix)).sum()
    assert product_error(seen, scale, [matrix]) == pytest.approx(wrong / right)


def test_the_least_error_of_the_products_decides():
    matrix = np.random.default_rng(1).standard_normal((16, 8))
    chosen = choose_range(activation(spiked()), [matrix])
    assert chosen.errors[chosen.observer] == min(chosen.errors.values()) == chosen.error
    assert chosen.scale == pytest.approx(
        observe(activation(spiked()).histogram)[chosen.observer] / LIMIT
    )


def test_every_observer_is_judged_at_the_step_it_would_have():
    seen = activation(spiked(30.0))
    weights = [np.random.default_rng(1).standard_normal((16, 8))]
    found = choose_range(seen, weights)
    for name, limit in observe(seen.histogram).items():
        assert found.errors[name] == product_error(seen, limit / LIMIT, weights)


def test_an_outlier_that_the_products_need_is_kept_and_one_that_they_ignore_is_cut():
    rows = spiked()
    needs = np.zeros((16, 4))
    needs[0] = 1.0
    ignores = np.ones((16, 4))
    ignores[0] = 0.0
    assert choose_range(activation(rows), [needs]).observer == "minmax"
    assert choose_range(activation(rows), [ignores]).scale * LIMIT < 20.0


@pytest.mark.parametrize("value", [0.0, 3.5])
def test_a_constant_value_is_refused_with_the_layers_name(value):
    with pytest.raises(CalibrationError, match=r"enter mlp\.down are") as caught:
        choose_range(activation(np.full((5, 4), value)), label="mlp.down")
    assert "\n" not in str(caught.value)
