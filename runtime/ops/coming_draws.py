"""Uniforms of some steps at once, which costs little more than those of one."""

from __future__ import annotations

import numpy as np

from ..noise.philox import DrawKind, uniforms
from .base import Canvas

STEPS_PER_DRAW = 8
"""Steps whose uniforms are made at once: Philox costs about 60 us per call, whatever its size."""

DRAWS_AT_ONCE = 4096
"""Uniforms from which on a call's own cost does not count."""


def coming_draws(canvas: Canvas, kind: DrawKind) -> np.ndarray:
    """Draws the uniforms of this step and some that follow: (steps, block) float64."""
    block, count = len(canvas.masked), STEPS_PER_DRAW
    places = np.arange(block)
    if canvas.transition is not None:
        # All of its steps will be taken, and only by what is free now.
        places = canvas.masked.nonzero()[0]
        fitting = max(count, DRAWS_AT_ONCE // max(len(places), 1))
        count = max(min(fitting, len(canvas.transition) - canvas.step), 1)
    steps = canvas.step + np.arange(count)[:, None]
    draws = uniforms(canvas.seed, canvas.sample_index, canvas.position + places, steps, kind)
    if len(places) == block:
        return draws
    spread = np.zeros((count, block))
    spread[:, places] = draws
    return spread
