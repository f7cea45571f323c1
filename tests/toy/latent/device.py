"""DDIM steps as kernels. A step is two launches whose arguments never change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from dlm_edge.runtime.gpu.device import Device, DeviceArray

from .contract import LatentCanvas, LatentOps

SOURCE = Path(__file__).with_name("latent.cu")
ARRAYS = ("latents", "level", "ids", "table")
NUMBERS = ("rows", "dim", "vocab", "num_steps", "step")
STATE = np.dtype([*((name, "u8") for name in ARRAYS), *((name, "i4") for name in NUMBERS)], True)
"""The structure `Latent` of the kernels."""


class CudaLatent(LatentOps):
    """The primitive `latent` on a device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._kernels = device.kernels(SOURCE, ("begin", "step", "advance"))

    def canvas(self, table: np.ndarray, rows: int, dim: int, vocab: int) -> LatentCanvas:
        device = self._device
        arrays = {
            "latents": device.empty((2, rows, dim), np.float32),
            "level": device.empty((1,), np.float32),
            "ids": device.empty((rows,), np.int32),
            "table": device.empty(table.shape, np.float32),
        }
        state = np.zeros(1, STATE)
        for name in ARRAYS:
            state[name] = arrays[name].pointer
        state["rows"], state["dim"], state["vocab"] = rows, dim, vocab
        state["num_steps"] = len(table)
        memory = device.empty((1,), STATE)
        device.upload(memory, state)
        device.upload(arrays["table"], table)
        kept = memory, arrays.pop("table")
        return LatentCanvas(table=table, memory=kept, **arrays)

    def begin(self, canvas: LatentCanvas, noise: np.ndarray) -> None:
        self._device.upload(canvas.latents, np.stack([noise, noise]))
        self._launch("begin", 1, 1, canvas.memory[0].pointer)
        self._device.flush()
        canvas.num_steps = 0

    def step(self, clean: DeviceArray, logits: DeviceArray, canvas: LatentCanvas) -> None:
        state = canvas.memory[0].pointer
        self._launch("step", canvas.ids.size, 32, clean.pointer, logits.pointer, state)
        self._launch("advance", 1, 1, state)
        self._device.flush(repeats=True)
        canvas.num_steps += 1

    def ids(self, canvas: LatentCanvas) -> np.ndarray:
        return self._device.download(canvas.ids)

    def _launch(self, name: str, grid: int, block: int, *arguments: int) -> None:
        self._device.launch(self._kernels[name], grid, block, arguments)
