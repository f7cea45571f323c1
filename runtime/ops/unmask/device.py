"""Unmasking as kernels: `sample` (a thread block per row) and `commit` (one per slot)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..canvas.contract import Slot
from ..canvas.device import CanvasMemory, CudaCanvases, Values, as_type
from ..cuda.ops import CudaOps, slot_of
from ..cuda.state import read_struct
from .contract import UnmaskCanvas, UnmaskOps, UnmaskSpec

UNMASK_STATE = read_struct("unmask/unmask.cuh", "Unmask")


class CudaUnmask(CudaCanvases[UnmaskSpec, UnmaskCanvas], UnmaskOps):
    """The primitive `unmask` on a device."""

    layout = UNMASK_STATE
    sample_kernel = "sample"
    row_warps = (10, 12)

    def __init__(self, ops: CudaOps) -> None:
        """Compiles the kernels, or finds them compiled; DeviceError if that fails."""
        kernels = ops.kernels("unmask/sample.cu", ("sample_float32", "sample_float16"))
        kernels |= ops.kernels("unmask/commit.cu", ("begin_block", "commit"))
        super().__init__(ops, kernels)

    def first_values(self, specs: Sequence[UnmaskSpec]) -> Values:
        block, vocab = specs[0].block, specs[0].vocab_size
        penalised = [spec.sampling.repetition_penalty != 1.0 for spec in specs]
        return {
            "score": [np.zeros(block, np.float32) for _ in specs],
            "log_prob": [np.zeros(block, np.float32) for _ in specs],
            "rank": [np.zeros(block, np.int32) for _ in specs],
            "unmask_chance": [as_type(spec.unmask_chance, np.float64) for spec in specs],
            "time_input": [
                np.zeros(block, np.float32) if spec.sees_time else None for spec in specs
            ],
            "times": [as_type(spec.times, np.float32) for spec in specs],
            "seen": [np.zeros(vocab, np.uint8) if one else None for one in penalised],
        }

    def write_state(self, state: Any, spec: UnmaskSpec) -> None:
        selection = spec.selection
        state["kind"], state["score_kind"] = selection.kind, selection.score
        state["steps"], state["limit"] = selection.steps or 0, selection.limit
        state["num_chances"] = 0 if spec.unmask_chance is None else len(spec.unmask_chance)
        state["num_times"] = 0 if spec.times is None else len(spec.times)

    def make(self, specs: tuple[UnmaskSpec, ...], memory: CanvasMemory) -> UnmaskCanvas:
        names = ("ids", "masked", "chosen", "candidate", "score", "log_prob", "time_input", "seen")
        arrays: dict[str, Any] = {name: memory.arrays[name] for name in names}
        slots = tuple(Slot() for _ in specs)
        return UnmaskCanvas(specs=specs, slots=slots, memory=memory, **arrays)

    def mark_seen(self, canvas: UnmaskCanvas, ids: np.ndarray, *, slot: int = 0) -> None:
        if canvas.seen is not None:
            own = slot_of(canvas.seen, slot)
            seen = self._device.download(own)
            seen[ids] = 1
            self._device.upload(own, seen)
