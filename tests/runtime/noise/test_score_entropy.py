"""Score entropy against its definition, and the bound it integrates to against closed forms."""

import math

import numpy as np
import pytest
import torch
from dlm_edge.runtime.noise.score_entropy import (
    absorb_entropy,
    move_odds,
    prior_nats,
    spread_sigma,
    uniform_entropy,
    uniform_ratio,
)

SIGMAS = (1e-4, 1e-3, 0.1, 1.0, 5.0, 20.0)
K = 7


def transition(sigma: float) -> np.ndarray:
    """(K, K) of the uniform graph: row x0, column x_t."""
    keep = math.exp(-sigma)
    return keep * np.eye(K) + (1 - keep) / K


def definition(log_score: np.ndarray, ratio: np.ndarray, rate: np.ndarray) -> float:
    """Sum of Q_y (exp s_y - R_y s_y + R_y (log R_y - 1)), 0 log 0 = 0."""
    safe = np.where(ratio > 0, ratio, 1.0)
    terms = np.exp(log_score) - ratio * log_score + ratio * (np.log(safe) - 1)
    return float((rate * terms).sum())


def uniform_of(log_score: np.ndarray, x: int, x0: int, sigma: float) -> float:
    others = np.delete(log_score, x)
    return uniform_entropy(
        np.exp(others).sum(), others.sum(), log_score[x0], float(x != x0), sigma, K
    )


def uniform_ratios(x: int, x0: int, sigma: float) -> np.ndarray:
    row = transition(sigma)[x0]
    return row / row[x]


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize(("x", "x0"), [(2, 2), (2, 5)])
def test_uniform_entropy_is_the_definition(sigma, x, x0):
    log_score = np.random.default_rng(0).normal(size=K)
    log_score[x] = 0
    ratio = uniform_ratios(x, x0, sigma)
    expected = definition(np.delete(log_score, x), np.delete(ratio, x), np.full(K - 1, 1 / K))
    assert uniform_of(log_score, x, x0, sigma) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize(("x", "x0"), [(2, 2), (2, 5)])
def test_uniform_entropy_is_zero_at_the_true_ratios_and_positive_elsewhere(sigma, x, x0):
    true = np.log(uniform_ratios(x, x0, sigma))
    scale = max(1.0, float(np.exp(true).max()))
    assert abs(uniform_of(true, x, x0, sigma)) < 1e-12 * scale * max(1, abs(true).max())
    rng = np.random.default_rng(1)
    for size in (1e-2, 1.0):
        for _ in range(5):
            moved = true + size * rng.normal(size=K)
            moved[x] = 0
            assert uniform_of(moved, x, x0, sigma) > 0


@pytest.mark.parametrize("sigma", SIGMAS)
def test_absorb_entropy_is_the_definition_zero_at_the_truth_and_positive_elsewhere(sigma):
    x0, r = 3, 1 / math.expm1(sigma)
    log_score = np.random.default_rng(0).normal(size=K) + math.log(r)
    ratio = np.where(np.arange(K) == x0, r, 0.0)
    expected = definition(log_score, ratio, np.ones(K))
    found = absorb_entropy(np.exp(log_score).sum(), log_score[x0], sigma)
    assert found == pytest.approx(expected, rel=1e-9)
    assert found > 0
    assert absorb_entropy(r, math.log(r), sigma) == pytest.approx(0.0, abs=1e-12 * r * 10)


def test_absorb_entropy_over_r_is_at_least_the_cross_entropy_and_equal_when_normalised():
    rng = np.random.default_rng(2)
    sigma = 0.7
    log_p = rng.normal(size=K)
    log_p -= np.log(np.exp(log_p).sum())
    shift = -math.log(math.expm1(sigma))
    for extra, equal in ((0.0, True), (0.3, False)):
        s = log_p + shift + extra
        found = absorb_entropy(np.exp(s).sum(), s[1], sigma) * math.expm1(sigma)
        if equal:
            assert found == pytest.approx(-log_p[1], rel=1e-12)
        else:
            assert found > -log_p[1] + 1e-3


def test_numpy_and_torch_compute_the_same():
    rng = np.random.default_rng(3)
    total, linear, at = rng.gamma(2.0, size=5), rng.normal(size=5), rng.normal(size=5)
    sigma, changed = rng.gamma(1.0, size=5) + 1e-3, np.array([0.0, 1, 0, 1, 1])
    arrays = (total, linear, at, changed, sigma)
    tensors = tuple(map(torch.from_numpy, arrays))
    np.testing.assert_allclose(
        uniform_entropy(*tensors, K).numpy(), uniform_entropy(*arrays, K), rtol=1e-12
    )
    np.testing.assert_allclose(
        absorb_entropy(tensors[0], tensors[2], tensors[4]).numpy(),
        absorb_entropy(total, at, sigma),
        rtol=1e-12,
    )


def test_odds_lose_no_digits():
    for sigma in (1e-12, 1e-4, 0.5, 30.0):
        assert move_odds(sigma) == pytest.approx(math.expm1(sigma), rel=1e-14)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_uniform_ratio_is_moved_over_kept(sigma):
    row = transition(sigma)[0]
    assert uniform_ratio(sigma, K) == pytest.approx(row[1] / row[0], rel=1e-12)


def test_weights_of_spread_noise_integrate_over_sigma():
    level = (np.arange(100_000) + 0.5) / 100_000
    sigma, weight = spread_sigma(level, 20.0)
    assert sigma.min() >= 0
    assert sigma.max() < 20.0
    assert weight.mean() == pytest.approx(20.0, rel=1e-3)
    assert (weight * np.exp(-sigma)).mean() == pytest.approx(1.0, rel=1e-4)


def test_the_bound_of_the_true_score_is_the_negative_log_likelihood():
    """One token of a known distribution: the score of the noised marginal makes the bound tight."""
    prior = np.array([0.4, 0.25, 0.15, 0.1, 0.05, 0.03, 0.02])
    level = (np.arange(4000) + 0.5) / 4000
    sigmas, weights = spread_sigma(level, 25.0)
    cost = np.zeros(K)
    for sigma, weight in zip(sigmas, weights, strict=True):
        moves = transition(sigma)
        marginal = prior @ moves
        for x0 in range(K):
            for x in range(K):
                s = np.log(marginal / marginal[x])
                cost[x0] += moves[x0, x] * weight * uniform_of(s, x, x0, sigma) / len(level)
    # The rest of the bound, the divergence of the fully noised token from uniform, is 0 by then.
    np.testing.assert_allclose(cost, -np.log(prior), rtol=2e-3)


@pytest.mark.parametrize("last", [0.5, 3.0, 20.0])
def test_prior_nats_are_the_divergence_from_uniform(last):
    row = transition(last)[0]
    assert prior_nats(last, K) == pytest.approx((row * np.log(K * row)).sum(), abs=1e-12)
