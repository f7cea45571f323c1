"""How much a noise schedule masks before each of a block's steps, and what a step uncovers."""

from __future__ import annotations

import numpy as np

from ...bundle.manifest import Manifest
from ...noise.schedule import schedule_from_json


def mask_chances(manifest: Manifest, steps: int) -> np.ndarray:
    """Gives (steps + 1,) float64: the schedule's m_t at t = 1 - i / steps."""
    times = 1.0 - np.arange(steps + 1) / steps
    return np.asarray(schedule_from_json(manifest.noise_schedule).move_chance(times))


def unmask_chances(manifest: Manifest, steps: int) -> np.ndarray:
    """Gives (steps,) float64: (m_t - m_s) / m_t from t = 1 - i / steps to s = t - 1 / steps."""
    moved = mask_chances(manifest, steps)
    return (moved[:-1] - moved[1:]) / moved[:-1]
