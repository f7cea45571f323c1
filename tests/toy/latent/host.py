"""DDIM steps in NumPy: the reference for the kernel, and the CPU path."""

from __future__ import annotations

from typing import Any

import numpy as np

from .contract import LatentCanvas, LatentOps


class NumpyLatent(LatentOps):
    """The primitive `latent` on NumPy arrays."""

    def canvas(self, table: np.ndarray, rows: int, dim: int, vocab: int) -> LatentCanvas:
        del vocab
        return LatentCanvas(
            table=table,
            latents=np.zeros((2, rows, dim), np.float32),
            level=np.zeros(1, np.float32),
            ids=np.zeros(rows, np.int32),
        )

    def begin(self, canvas: LatentCanvas, noise: np.ndarray) -> None:
        canvas.latents[:] = noise
        canvas.level[0] = canvas.table[0, 0]
        canvas.num_steps = 0

    def step(self, clean: Any, logits: Any, canvas: LatentCanvas) -> None:
        _, keep, pull = canvas.table[canvas.num_steps]
        canvas.latents[:] = keep * canvas.latents[0] + pull * clean[0]
        canvas.ids[:] = logits[0].argmax(axis=1)
        canvas.num_steps += 1
        if canvas.num_steps < len(canvas.table):
            canvas.level[0] = canvas.table[canvas.num_steps, 0]

    def ids(self, canvas: LatentCanvas) -> np.ndarray:
        return canvas.ids.copy()
