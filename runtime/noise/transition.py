"""One reverse step of a score-based discrete diffusion, as five numbers per step.

A score network gives, for the token x at a position, the ratios s_y = p_t(y) / p_t(x) to every
other state y. One step from noise sigma to sigma' < sigma then moves x to y with a weight that is
the same simple function of s_y for both graphs and both predictors. With S the sum of s_y over all
states y but x:

    move(y) = gain * max(s_y - offset * (1 + S), 0)      for y != x
    stay    = max(stay - slope * S, 0)

divided by their sum. With a = exp(-(sigma - sigma')) and K states:

| step | gain | offset | stay | slope |
|---|---|---|---|---|
| uniform, Tweedie | g = (1 - a) / K | g | (a + g) (1 - g) | (a + g) g |
| absorb, Tweedie | 1 - a | 0 | a | 1 - a |
| uniform, Euler | c = dt sigma'(t) / K | 0 | 1 | c |
| absorb, Euler | c = dt sigma'(t) | 0 | 1 | c |
| absorb, last step | 1 | 0 | 0 | 0 |

The analytic (Tweedie) rows are (e^(-dQ) s)_y p(x | y) of the paper times exp(-(sigma - sigma')),
which keeps every factor finite; with the exact score their sum is a and they are Bayes' posterior.
Under absorb only masked positions move; MASK is x then, and no state.

Steps are taken at t = 1 - i / n; the last goes to sigma' = 0 by the analytic formula, whatever the
predictor, so that n steps are n graph runs and no noise is left.

Source: SEDD (arXiv 2310.16834), sections 3.3 and 4; theorem 4.1.
"""

from __future__ import annotations

import math

import numpy as np

from ..errors import ConfigError
from .schedule import NoiseSchedule

GRAPHS = ("uniform", "absorb")
COLUMNS = ("sigma", "gain", "offset", "stay", "slope")
"""Of a table of steps: the noise that the network gets, and the four numbers above."""


def analytic_step(graph: str, num_states: int, sigma: float, sigma_next: float) -> np.ndarray:
    """Gives the row of a Tweedie step: (5,) float64.

    Args:
        num_states: K, without MASK.
        sigma: Total noise now.
        sigma_next: Total noise afterwards; 0 for the denoising step.
    """
    removed = sigma - sigma_next
    moved, kept = -math.expm1(-removed), math.exp(-removed)
    if graph == "absorb":
        if sigma_next == 0.0:
            return np.array([sigma, 1.0, 0.0, 0.0, 0.0])
        return np.array([sigma, moved, 0.0, kept, moved])
    share = moved / num_states
    return np.array([sigma, share, share, (kept + share) * (1.0 - share), (kept + share) * share])


def euler_step(graph: str, num_states: int, sigma: float, change: float) -> np.ndarray:
    """Gives the row of an Euler step: (5,) float64; `change` is dt sigma'(t)."""
    gain = change if graph == "absorb" else change / num_states
    return np.array([sigma, gain, 0.0, 1.0, gain])


def transition_table(
    schedule: NoiseSchedule, graph: str, predictor: str, num_steps: int, num_states: int
) -> np.ndarray:
    """Gives the rows of a whole decode, (num_steps, 5) float64; columns are COLUMNS.

    Args:
        num_steps: Graph runs, at least 1.
        num_states: K, without MASK.

    Raises:
        ConfigError: Unknown graph or predictor.
    """
    if graph not in GRAPHS:
        raise ConfigError(f"noise graph {graph!r} is unknown; choose one of {', '.join(GRAPHS)}")
    if predictor not in ("tweedie", "euler"):
        raise ConfigError(f"predictor {predictor!r} is unknown; choose tweedie or euler")
    times = 1.0 - np.arange(num_steps) / num_steps
    sigmas = [float(schedule.sigma(float(t))) for t in times]
    rows = []
    for index, (t, sigma) in enumerate(zip(times, sigmas, strict=True)):
        if index + 1 == num_steps:
            rows.append(analytic_step(graph, num_states, sigma, 0.0))
        elif predictor == "tweedie":
            rows.append(analytic_step(graph, num_states, sigma, sigmas[index + 1]))
        else:
            change = float(schedule.rate(float(t))) / num_steps
            rows.append(euler_step(graph, num_states, sigma, change))
    return np.stack(rows)
