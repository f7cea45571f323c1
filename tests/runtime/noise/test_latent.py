"""Schedules and sampler steps of latents against closed forms.

Where data are Gaussian, x0 ~ N(m, s^2), the best estimate and the solution of the probability-flow
equation are known: z_t = alpha_t m + sqrt(alpha_t^2 s^2 + sigma_t^2) u with u fixed.
"""

import numpy as np
import pytest
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.runtime.noise.latent import LatentSchedule, sampler_times, step_table

MEAN, SPREAD = 0.7, 0.5
COSINE = LatentSchedule()


def estimate(z, level):
    """The mean of x0 given z at a noise angle."""
    alpha, sigma = np.cos(np.pi / 2 * level), np.sin(np.pi / 2 * level)
    gain = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)
    return MEAN + gain * (z - alpha * MEAN)


def sample(table, z, rng=None):
    before = np.zeros_like(z)
    for level, keep, pull, pull_before, noise in table:
        x0 = estimate(z, level)
        z = keep * z + pull * x0 + pull_before * before
        if noise:
            z = z + noise * rng.normal(size=z.shape)
        before = x0
    return z


def exact_end(z, schedule):
    """Where the probability-flow equation leads from z at time T, at no noise."""
    share = schedule.signal()[-1]
    alpha = np.sqrt(share)
    return MEAN + SPREAD * (z - alpha * MEAN) / np.sqrt(share * SPREAD**2 + 1 - share)


def test_the_cosine_schedule_is_that_of_its_paper_within_its_bounds():
    share = COSINE.signal()
    angle = lambda t: np.cos((t / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2  # noqa: E731
    times = np.array([100, 500, 900])
    assert np.allclose(share[times], angle(times) / angle(0))
    assert share[0] == 0.9999
    assert share[-1] == 1e-4
    assert (np.diff(share) <= 0).all()


def test_the_linear_schedule_multiplies_what_each_step_keeps():
    share, kept = LatentSchedule(name="linear").signal(), 1.0
    for step in range(1000):
        kept *= 1 - (1e-4 + (0.02 - 1e-4) * step / 999)
    assert np.isclose(kept, 4.0358e-05, rtol=1e-3)
    assert share[-1] == 1e-4, "kept within the bounds"
    assert np.isclose(share[500], np.prod(1 - np.linspace(1e-4, 0.02, 1000)[:500]))


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_zero_terminal_signal_leaves_the_first_time_as_it_is(name):
    plain, zero = LatentSchedule(name=name), LatentSchedule(name=name, zero_snr=True)
    assert zero.signal()[-1] == 0.0
    assert zero.levels()[-1] == 1.0
    assert np.isclose(zero.signal()[0], plain.signal()[0])


def test_levels_are_the_angles_of_the_signal():
    angle = COSINE.levels() * np.pi / 2
    assert np.allclose(np.cos(angle) ** 2, COSINE.signal())


@pytest.mark.parametrize("schedule", [COSINE, LatentSchedule(zero_snr=True)])
@pytest.mark.parametrize(("rule", "order"), [("ddim", 1), ("dpm_solver", 2)])
def test_samplers_converge_to_the_exact_solution_with_their_order(rule, order, schedule):
    z = np.linspace(-2, 2, 9)
    wanted = exact_end(z, schedule)
    errors = [
        np.abs(sample(step_table(schedule, rule, steps), z) - wanted).max()
        for steps in (40, 80, 160, 320)
    ]
    assert errors[-1] < (0.01, 0.002)[order - 1]
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    assert rates.mean() > order - 0.35, errors


@pytest.mark.parametrize("rule", ["ddim", "dpm_solver"])
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_an_exact_estimate_leads_to_the_clean_latent(rule, steps):
    table = step_table(COSINE, rule, steps)
    x0, noise = 0.3, 1.1
    for row, after in zip(table, [*table[1:, 0], 0.0], strict=True):
        angle, then = np.pi / 2 * row[0], np.pi / 2 * after
        z = np.cos(angle) * x0 + np.sin(angle) * noise
        moved = row[1] * z + (row[2] + row[3]) * x0
        assert np.isclose(moved, np.cos(then) * x0 + np.sin(then) * noise, atol=1e-9)


def test_ddim_with_eta_1_has_the_mean_and_variance_of_the_posterior():
    share = np.append(COSINE.signal()[sampler_times(1000, 10)], 1.0)
    for row, now, then in zip(
        step_table(COSINE, "ddim", 10, 1.0), share[:-1], share[1:], strict=True
    ):
        ratio = now / then
        assert np.isclose(row[4] ** 2, (1 - then) / (1 - now) * (1 - ratio), atol=1e-12)
        assert np.isclose(row[1], np.sqrt(ratio) * (1 - then) / (1 - now), atol=1e-12)
        assert np.isclose(row[2], np.sqrt(then) * (1 - ratio) / (1 - now), atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_samples_of_any_eta_have_the_marginals_of_the_data(eta):
    rng = np.random.default_rng(0)
    found = sample(step_table(COSINE, "ddim", 300, eta), rng.normal(size=100_000), rng)
    assert abs(found.mean() - MEAN) < 0.012
    assert abs(found.std() - SPREAD) < 0.012


def test_times_fall_from_the_last_and_never_repeat():
    for steps in (1, 3, 50, 999, 1000):
        times = sampler_times(1000, steps)
        assert times[0] == 1000
        assert (np.diff(times) < 0).all()
        assert times[-1] >= 1


@pytest.mark.parametrize("steps", [0, 1001])
def test_more_steps_than_training_times_are_refused(steps):
    with pytest.raises(ConfigError, match="from 1 to 1000"):
        step_table(COSINE, "ddim", steps)


@pytest.mark.parametrize(
    "values", [{"name": "sigmoid"}, {"num_steps": 0}, {"num_steps": 1.5}, {"beta": 1}]
)
def test_a_malformed_schedule_is_refused(values):
    with pytest.raises(ConfigError):
        LatentSchedule.from_json(values)
