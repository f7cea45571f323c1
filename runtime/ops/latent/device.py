"""Steps of latents as kernels: `move_latents` (a thread block per row) and `advance_latents`."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from ...gpu.device import DeviceArray
from ..cuda.memory import Blank, TextMemories, TextMemory
from ..cuda.ops import CudaOps
from ..cuda.state import read_struct
from .contract import LatentCanvas, LatentOps, LatentSpec, not_finite

LATENT_STATE = read_struct("latent/latent.cuh", "Latent")
MAX_THREADS = 128


class CudaLatent(LatentOps):
    """The primitive `latent` on a device."""

    def __init__(self, ops: CudaOps) -> None:
        """Compiles the kernels, or finds them compiled; DeviceError if that fails."""
        names = ("begin_latents", "give_latents", "move_latents", "advance_latents")
        self._ops, self._kernels = ops, ops.kernels("latent/latent.cu", names)
        self._memories = TextMemories(ops.device, LATENT_STATE)

    def canvas(self, spec: LatentSpec) -> LatentCanvas:
        state = np.zeros(1, LATENT_STATE)
        own = state[0]
        own["seed_low"], own["seed_high"] = spec.seed & 0xFFFFFFFF, spec.seed >> 32
        own["sample_index"] = spec.sample_index
        own["rows"], own["width"], own["num_steps"] = spec.rows, spec.width, len(spec.table)
        latent = Blank((1, spec.rows, spec.width), np.float32)
        values = {
            "latents": latent,
            "before": latent,
            "given": latent,
            "known": Blank((1, spec.rows), np.float32),
            "level": np.zeros(1, np.float32),
            "guidance": np.full(1, spec.guidance, np.float32),
            "table": np.ascontiguousarray(spec.table, np.float32),
        }
        memory = self._memories.lend(state, values, {"staged": 1 + spec.rows})
        names = ("latents", "before", "known", "level", "guidance")
        arrays: dict[str, Any] = {name: memory.arrays[name] for name in names}
        canvas = LatentCanvas(spec=spec, memory=memory, **arrays)
        memory.user = weakref.ref(canvas)
        return canvas

    def begin(self, canvas: LatentCanvas, known: np.ndarray, *, position: int) -> None:
        memory: TextMemory = canvas.memory
        if canvas.step:  # a kernel of the canvas before may still read what is staged
            self._ops.device.synchronize()
        staged = memory.mapped["staged"]
        staged[0], staged[1:] = position, known
        canvas.step = 0
        self._launch("begin_latents", canvas, repeats=False)

    def give(self, embedded: DeviceArray, canvas: LatentCanvas) -> None:
        self._launch("give_latents", canvas, embedded.pointer, repeats=False)

    def move(self, estimate: DeviceArray, canvas: LatentCanvas) -> None:
        self._launch("move_latents", canvas, estimate.pointer)
        self._ops.launch(self._kernels["advance_latents"], 1, 32, canvas.memory.state.pointer)
        canvas.step += 1

    def flush(self, canvas: LatentCanvas) -> None:
        del canvas
        self._ops.device.flush(repeats=True)

    def check(self, canvas: LatentCanvas) -> None:
        step = int(self._ops.device.download(canvas.memory.state)["error"][0])
        if step:
            raise not_finite(step, canvas)

    def _launch(
        self, name: str, canvas: LatentCanvas, *pointers: int, repeats: bool = True
    ) -> None:
        threads = min(MAX_THREADS, 32 * max(1, -(-canvas.spec.width // 128)))
        state = canvas.memory.state.pointer
        self._ops.launch(
            self._kernels[name], canvas.spec.rows, threads, *pointers, state, repeats=repeats
        )
