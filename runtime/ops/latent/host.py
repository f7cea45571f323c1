"""Steps of latents in NumPy: the reference for the kernels, and the CPU path."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...noise.philox import gaussians
from .contract import LatentCanvas, LatentOps, LatentSpec, not_finite


class NumpyLatent(LatentOps):
    """The primitive `latent` on NumPy arrays."""

    def canvas(self, spec: LatentSpec) -> LatentCanvas:
        shape = (1, spec.rows, spec.width)
        return LatentCanvas(
            spec=spec,
            latents=np.zeros(shape, np.float32),
            before=np.zeros(shape, np.float32),
            known=np.zeros(shape[:2], np.float32),
            level=np.zeros(1, np.float32),
            guidance=np.full(1, spec.guidance, np.float32),
            memory=_Memory(spec),
        )

    def begin(self, canvas: LatentCanvas, known: np.ndarray, *, position: int) -> None:
        memory: _Memory = canvas.memory
        memory.position = position
        canvas.step = 0
        canvas.known[0] = known
        canvas.before[:] = 0.0
        canvas.latents[0] = memory.draw(0)
        canvas.level[0] = memory.table[0, 0]

    def give(self, embedded: Any, canvas: LatentCanvas) -> None:
        memory: _Memory = canvas.memory
        memory.rows = np.flatnonzero(canvas.known[0])
        memory.given = embedded[0, memory.rows].copy()
        canvas.latents[0, memory.rows] = memory.given

    def move(self, estimate: Any, canvas: LatentCanvas) -> None:
        memory: _Memory = canvas.memory
        latents, before = canvas.latents[0], canvas.before[0]
        _, keep, pull, pull_before, noise = memory.table[canvas.step]
        if not np.isfinite(estimate).all():
            raise not_finite(canvas.step + 1, canvas)
        latents *= keep
        latents += pull * estimate[0]
        if pull_before:
            latents += pull_before * before
        if noise:
            latents += noise * memory.draw(canvas.step + 1)
        latents[memory.rows] = memory.given
        before[:] = estimate[0]
        canvas.step += 1
        if not canvas.finished:
            canvas.level[0] = memory.table[canvas.step, 0]

    def flush(self, canvas: LatentCanvas) -> None: ...

    def check(self, canvas: LatentCanvas) -> None: ...


class _Memory:
    """The host's own of a canvas."""

    def __init__(self, spec: LatentSpec) -> None:
        self.spec = spec
        self.table = spec.table.astype(np.float32)
        self.position = 0
        self.rows = np.zeros(0, np.int64)
        """Known rows."""
        self.given = np.zeros((0, spec.width), np.float32)
        """Their latents."""

    def draw(self, step: int) -> np.ndarray:
        """Draws the noise of a step: (rows, width) float32."""
        spec, places = self.spec, self.position + np.arange(self.spec.rows)
        return gaussians(spec.seed, spec.sample_index, places, step, spec.width)
