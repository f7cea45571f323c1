"""Latents that move to what a model takes for clean, by steps of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(slots=True, kw_only=True, eq=False)
class LatentCanvas:
    """One text's latents, twice: for the run with its source and the one without."""

    table: np.ndarray
    """(steps, 3) float32 on the host: level, keep and pull of each step."""
    latents: Any
    """(2, rows, dim) float32; both halves are equal."""
    level: Any
    """(1,) float32: the noise that the next run is fed."""
    ids: Any
    """(rows,) int32: the likeliest tokens under the last step's logits."""
    memory: Any = None
    """The ops' own."""
    num_steps: int = 0
    """Done so far."""


class LatentOps(Protocol):
    """The primitive `latent`.

    A step of the table is (level, keep, pull): latents become keep latents + pull clean, in
    float32, and `level` the next step's. Ties of logits go to the lowest id.
    """

    def canvas(self, table: np.ndarray, rows: int, dim: int, vocab: int) -> LatentCanvas:
        """Allocates a canvas; nothing is allocated per step afterwards."""
        ...

    def begin(self, canvas: LatentCanvas, noise: np.ndarray) -> None:
        """Starts at the first step from noise (rows, dim) float32."""
        ...

    def step(self, clean: Any, logits: Any, canvas: LatentCanvas) -> None:
        """Takes a step.

        Args:
            clean: (1, rows, dim) float32.
            logits: (1, rows, vocab) float32.
            canvas: Changes.
        """
        ...

    def ids(self, canvas: LatentCanvas) -> np.ndarray:
        """Copies the ids to the host: (rows,) int32."""
        ...


def ddim_table(steps: int) -> np.ndarray:
    """Makes the steps from level 1 to 0, (steps, 3) float32: DDIM without noise.

    With z = cos(a) x + sin(a) e at a = pi level / 2, a step to b keeps the noise that the clean
    latents leave: z' = cos(b) x + sin(b) (z - cos(a) x) / sin(a).
    """
    level = np.linspace(1.0, 0.0, steps + 1)
    before, after = np.pi / 2 * level[:-1], np.pi / 2 * level[1:]
    keep = np.sin(after) / np.sin(before)
    pull = np.cos(after) - keep * np.cos(before)
    return np.stack([level[:-1], keep, pull], axis=1).astype(np.float32)
