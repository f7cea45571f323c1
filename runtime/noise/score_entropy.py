"""Score entropy: how far a score is from the noise's true ratios, per position, for both graphs.

A score network gives s_y = log p_t(y | rest) / p_t(x | rest) for every token y, with s_x = 0 at the
token x at a position. A graph says what noise does to a token: `uniform` moves it to any of
the K states, `absorb` to MASK. Given the clean token x0 the true ratios R_y are known, and

    SE = sum over y != x of Q_y (exp(s_y) - R_y s_y + R_y (log R_y - 1))  >=  0

is zero exactly at s = log R. Its integral over the noise sigma bounds -log p(x0), whatever the
schedule: d sigma = sigma'(t) dt. Q_y is 1 / K (uniform) or 1 at masked positions (absorb).

All functions are elementwise on floats, NumPy arrays and torch tensors alike, so that training and
the device's bound are one code; the reductions over the vocabulary are the caller's. Written in
forms that lose no digits at small sigma. Knows no model.

Source: SEDD (arXiv 2310.16834), sections 3.2 and 3.3.
"""

from __future__ import annotations

import math
from typing import Any

from .schedule import apply

CENTRE = 0.5
"""Noise below and above which `spread_sigma` draws about evenly often (for large sigma_max)."""


def move_odds(sigma: Any) -> Any:
    """exp(sigma) - 1: a moved token's chance over a kept one's."""
    return apply("expm1", sigma)


def uniform_ratio(sigma: Any, num_states: int) -> Any:
    """Chance of one particular other token over that of the token itself, rho = E / (E + K)."""
    odds = move_odds(sigma)
    return odds / (odds + num_states)


def absorb_entropy(total: Any, at_x0: Any, sigma: Any) -> Any:
    """SE of a masked position; others have none.

    R = r = 1 / (exp(sigma) - 1) at x0, 0 elsewhere. Times sigma'(t), r is the weight that masked
    diffusion gives a cross-entropy, and SE / r is at least that cross-entropy.

    Args:
        total: Sum of exp(s_y) over all states y.
        at_x0: s at the clean token.
        sigma: Total noise, above 0.
    """
    odds = move_odds(sigma)
    return (odds * total - at_x0 - apply("log", odds) - 1.0) / odds


def uniform_entropy(
    total: Any, linear: Any, at_x0: Any, changed: Any, sigma: Any, num_states: int
) -> Any:
    """SE of a position under the uniform graph.

    R_y = rho for all y where x = x0; where noise changed it, 1 / rho at x0 and 1 elsewhere.

    Args:
        total: Sum of exp(s_y) over the states y != x.
        linear: Sum of s_y over the states y != x.
        at_x0: s at the clean token (0 where nothing changed).
        changed: 1 where x differs from x0, else 0, of the dtype of `total`.
        sigma: Total noise, above 0.
        num_states: K.
    """
    odds = move_odds(sigma)
    rho = uniform_ratio(sigma, num_states)
    log_rho = apply("log", rho)
    others = num_states - 1
    kept = rho * linear - others * rho * (log_rho - 1.0)
    inverse = 1.0 + num_states / odds
    moved = linear + (num_states / odds) * at_x0 + inverse * (log_rho + 1.0) + (others - 1)
    return (total - kept - changed * (moved - kept)) / num_states


def prior_nats(last: float, num_states: int) -> float:
    """KL(p(x_1 | x_0) || uniform) per token of the uniform graph, in nats; `last` is sigma(1)."""
    other = -math.expm1(-last) / num_states
    own = math.exp(-last) + other
    nats = own * math.log(num_states * own)
    return nats + (num_states - 1) * other * math.log(num_states * other)


def spread_sigma(level: Any, sigma_max: float) -> tuple[Any, Any]:
    """Draws a noise where the uniform graph's score entropy is: density ~ 1 / (sigma + 0.5)^2.

    The integral over sigma is the bound whatever density sigma is drawn from; with this one,
    entropy times weight is about even. On a small character model its standard deviation is a
    third of that under geometric times.

    Args:
        level: Evenly distributed in [0, 1).
        sigma_max: Largest noise of the schedule.

    Returns:
        sigma in [0, sigma_max), and its weight, one over the density.
    """
    share = level * (sigma_max / (sigma_max + CENTRE))
    sigma = CENTRE * share / (1.0 - share)
    weight = (sigma + CENTRE) * (sigma + CENTRE) * (sigma_max / ((sigma_max + CENTRE) * CENTRE))
    return sigma, weight
