"""Noise schedules against their definitions."""

import json
import math

import numpy as np
import pytest
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.runtime.noise.schedule import (
    SCHEDULES,
    make_schedule,
    schedule_from_json,
    schedule_to_json,
)

EACH = pytest.mark.parametrize("schedule", [make_schedule(name) for name in SCHEDULES])
TIMES = np.linspace(1e-3, 0.999, 57)


@EACH
def test_move_chance_is_one_minus_the_exponential_of_minus_sigma(schedule):
    chance, sigma = schedule.move_chance(TIMES), schedule.sigma(TIMES)
    np.testing.assert_allclose(chance, 1 - np.exp(-sigma), rtol=1e-10)
    assert (np.diff(chance) > 0).all()
    assert (chance >= 0).all()
    assert (chance <= 1).all()


@EACH
def test_weight_is_the_rate_over_expm1_of_sigma(schedule):
    step = 1e-6
    rate = (schedule.sigma(TIMES + step) - schedule.sigma(TIMES - step)) / (2 * step)
    np.testing.assert_allclose(schedule.rate(TIMES), rate, rtol=1e-6)
    assert schedule.rate(TIMES).shape == TIMES.shape
    expected = rate / np.expm1(schedule.sigma(TIMES))
    np.testing.assert_allclose(schedule.weight(TIMES), expected, rtol=1e-6)


@EACH
def test_time_inverts_move_chance(schedule):
    early = TIMES[schedule.move_chance(TIMES) < 0.999]
    np.testing.assert_allclose(schedule.time(schedule.move_chance(early)), early, rtol=1e-8)


@EACH
def test_weight_times_move_chance_integrates_to_the_share_of_tokens_ever_masked(schedule):
    # weight * m = m', so the integral is m(1) - m(0): 1 - eps where m(0) = 0.
    nodes, shares = np.polynomial.legendre.leggauss(200)
    t = (nodes + 1) / 2
    total = (shares / 2 * schedule.weight(t) * schedule.move_chance(t)).sum()
    expected = schedule.move_chance(1.0) - schedule.move_chance(0.0)
    assert total == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["loglinear", "cosine"])
def test_eps_is_what_stays_unmasked(name):
    schedule = make_schedule(name, eps=0.01)
    assert schedule.move_chance(1.0) == pytest.approx(0.99)
    assert schedule.move_chance(0.0) == 0.0


def test_the_weight_of_loglinear_is_one_over_t():
    t = np.array([1e-12, 1e-6, 0.1, 1.0])
    np.testing.assert_allclose(make_schedule("loglinear").weight(t) * t, 1.0, rtol=1e-14)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("loglinear", 0.999e-9), ("linear", 1e-8), ("cosine", 0.999 * (math.pi / 2 * 1e-9) ** 2 / 2)],
)
def test_small_times_keep_their_digits(name, expected):
    # The first term of the series is exact to 1e-8 at t = 1e-9.
    assert make_schedule(name).move_chance(1e-9) == pytest.approx(expected, rel=1e-7)


@EACH
def test_floats_stay_floats_and_tensors_stay_tensors(schedule):
    torch = pytest.importorskip("torch")
    for function in (schedule.move_chance, schedule.sigma, schedule.weight, schedule.time):
        one = function(0.25)
        assert type(one) is float
        many = function(torch.tensor([0.25, 0.5], dtype=torch.float64))
        assert isinstance(many, torch.Tensor)
        assert float(many[0]) == pytest.approx(one, rel=1e-12)


@EACH
def test_json_round_trip_gives_the_same_schedule(schedule):
    assert schedule_from_json(json.loads(json.dumps(schedule_to_json(schedule)))) == schedule


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "sigmoid"}, "unknown; choose one of loglinear"),
        ({"name": "loglinear", "epsilon": 1e-3}, "unknown parameter 'epsilon'"),
        ({"name": "cosine", "eps": math.nan}, "must be a number in"),
        ({"name": "linear", "sigma_max": "10"}, "must be a number in"),
        ({"name": "geometric", "sigma_min": 0.5, "sigma_max": 0.6}, "sigma_max must be"),
        ({"eps": 1e-3}, "needs a name"),
    ],
)
def test_malformed_schedules_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        schedule_from_json(fields)
