"""Steps against Bayes' rule, the masked ancestral rule, and the rates they come from."""

import numpy as np
import pytest
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.runtime.families.mdlm.steps import unmask_chances
from dlm_edge.runtime.noise.schedule import make_schedule
from dlm_edge.runtime.noise.transition import (
    analytic_step,
    euler_step,
    transition_table,
)
from score_engines import ScoreEngines, kernel, score_manifest
from transition_rows import probabilities

K = 7
NOISES = [(5.0, 4.0), (1.0, 0.3), (0.1, 0.09), (1e-3, 1e-4), (20.0, 0.5), (0.7, 0.0)]


def clean(seed: int = 0) -> np.ndarray:
    p = np.random.default_rng(seed).gamma(0.5, size=K)
    return p / p.sum()


def exact_scores(graph: str, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Log-scores (rows, V) of a single token's distribution, and the tokens x of the rows."""
    marginal = clean() @ kernel(graph, K, sigma)[:K]
    if graph == "uniform":
        return np.log(marginal[None] / marginal[:, None]), np.arange(K)
    return np.log(np.append(marginal[:K], marginal[K]) / marginal[K])[None], np.array([K])


def posterior(graph: str, sigma: float, sigma_next: float) -> np.ndarray:
    """p(x_s = column | x_t = row) by Bayes' rule, from the forward kernels alone."""
    before = clean() @ kernel(graph, K, sigma_next)[:K]
    joint = before[:, None] * kernel(graph, K, sigma - sigma_next)
    return (joint / joint.sum(axis=0)).T


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("graph", ["uniform", "absorb"])
def test_an_analytic_step_with_the_exact_score_is_the_posterior(graph, noise):
    scores, ids = exact_scores(graph, noise[0])
    states = np.arange(scores.shape[1]) < K
    found = probabilities(scores, ids, analytic_step(graph, K, *noise), states)
    expected = posterior(graph, *noise)
    assert np.allclose(found, expected[ids], atol=1e-12)
    assert np.allclose(found.sum(axis=1), 1)


@pytest.mark.parametrize("graph", ["uniform", "absorb"])
def test_the_unnormalised_row_sums_to_the_kept_share_whatever_the_score(graph):
    rng = np.random.default_rng(3)
    score = 0.5 + rng.random(K)
    score[2] = 1.0
    sigma, after = 0.9, 0.5
    _, gain, offset, stay, slope = analytic_step(graph, K, sigma, after)
    others = np.delete(score, 2) if graph == "uniform" else score * 0.1
    total = others.sum()
    assert (others > offset * (1 + total)).all()  # nothing is cut off at 0
    moved = (gain * (others - offset * (1 + total))).sum()
    assert moved + stay - slope * total == pytest.approx(np.exp(after - sigma))


def test_absorbing_steps_are_those_of_masked_ancestral_sampling():
    """Scores of a masked model's p and loglinear noise: equal to (m_t - m_s) / m_t p, each step."""
    p, steps = clean(1), 12
    engines = ScoreEngines(lambda ids, sigma: np.zeros((4, K + 1)), [4], K + 1)
    chances = unmask_chances(score_manifest(engines, "absorb"), steps)
    table = transition_table(make_schedule("loglinear"), "absorb", "tweedie", steps, K)
    states = np.arange(K + 1) < K
    for row, chance in zip(table, chances, strict=True):
        score = np.append(np.log(p) - np.log(np.expm1(row[0])), 0.0)[None]
        found = probabilities(score, np.array([K]), row, states)[0]
        assert np.allclose(found, np.append(chance * p, 1 - chance), atol=1e-12)


@pytest.mark.parametrize("graph", ["uniform", "absorb"])
def test_an_euler_step_is_the_reverse_rate_and_agrees_with_the_posterior_for_small_steps(graph):
    sigma, errors = 0.8, []
    scores, ids = exact_scores(graph, sigma)
    states = np.arange(scores.shape[1]) < K
    for change in (0.02, 0.01, 0.005):
        found = probabilities(scores, ids, euler_step(graph, K, sigma, change), states)
        rate = np.exp(scores) * (1 / K if graph == "uniform" else 1.0)
        rate[np.arange(len(ids)), ids] = 0
        expected = change * rate
        expected[np.arange(len(ids)), ids] = 1 - expected.sum(axis=1)
        assert np.allclose(found, expected, atol=1e-12)
        errors.append(np.abs(found - posterior(graph, sigma, sigma - change)[ids]).max())
    assert errors[0] > 3.5 * errors[1] > 3.5**2 * errors[2]  # of second order


@pytest.mark.parametrize("predictor", ["tweedie", "euler"])
@pytest.mark.parametrize("schedule", ["geometric", "loglinear"])
@pytest.mark.parametrize("steps", [1, 2, 64])
def test_the_last_step_takes_all_noise_away(predictor, schedule, steps):
    noise = make_schedule(schedule)
    for graph in ("uniform", "absorb"):
        table = transition_table(noise, graph, predictor, steps, K)
        assert table.shape == (steps, 5)
        assert table[0, 0] == pytest.approx(noise.sigma(1.0))
        assert (np.diff(table[:, 0]) < 0).all()
        assert np.array_equal(table[-1], analytic_step(graph, K, table[-1, 0], 0.0))
    assert table[-1, 3] == table[-1, 4] == 0  # absorb: no position can stay masked


def test_unknown_graphs_and_predictors_are_refused():
    for graph, predictor in (("ring", "tweedie"), ("absorb", "heun")):
        with pytest.raises(ConfigError):
            transition_table(make_schedule("loglinear"), graph, predictor, 4, K)
