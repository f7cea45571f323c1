"""Where the rows of a run stand and what they see, for graphs that take both as inputs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layout:
    """Positions and visibility of the rows of one run."""

    offsets: np.ndarray
    """(rows,) int32: positions, counted from the number of cached rows."""
    visible: np.ndarray
    """(rows, rows) float32: 1 where a row (first axis) sees another, 0 elsewhere."""

    def __post_init__(self) -> None:
        """Fixes the arrays, so that a device need not be sent them again."""
        self.offsets.flags.writeable = self.visible.flags.writeable = False


@lru_cache(maxsize=8)
def causal_layout(rows: int) -> Layout:
    """Gives the layout of known ids: each row sees those before it and itself."""
    return Layout(offsets=np.arange(rows, dtype=np.int32), visible=np.tri(rows, dtype=np.float32))
