"""Unmasking as kernels: `sample` (a thread block per row) and `commit` (one per text)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...gpu.device import DeviceArray
from ..canvas.device import CudaCanvases, CudaPlace, as_type
from ..cuda.memory import Blank, TextMemory, Values
from ..cuda.ops import CudaOps
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

    def first_values(self, spec: UnmaskSpec) -> Values:
        shape = (1, spec.block)
        penalised = spec.sampling.repetition_penalty != 1.0
        return {
            "score": np.zeros(shape, np.float32),
            "log_prob": np.zeros(shape, np.float32),
            "rank": Blank(shape, np.int32),
            "unmask_chance": as_type(spec.unmask_chance, np.float64),
            "time_input": np.zeros(shape, np.float32) if spec.sees_time else None,
            "times": as_type(spec.times, np.float32),
            "seen": np.zeros((1, spec.vocab_size), np.uint8) if penalised else None,
            "before": Blank((1, 1, spec.vocab_size), spec.shifted) if spec.shifted else None,
        }

    def write_state(self, state: Any, spec: UnmaskSpec) -> None:
        selection = spec.selection
        state["kind"], state["score_kind"] = selection.kind, selection.score
        state["steps"], state["limit"] = selection.steps or 0, selection.limit
        state["num_chances"] = 0 if spec.unmask_chance is None else len(spec.unmask_chance)
        state["sub_block"], state["first_alone"] = spec.sub_block or 0, spec.first_alone
        state["num_times"] = 0 if spec.times is None else len(spec.times)

    def make(self, spec: UnmaskSpec, memory: TextMemory) -> UnmaskCanvas:
        names = ("ids", "masked", "chosen", "candidate", "score", "log_prob", "time_input", "seen",
                 "before")  # fmt: skip
        arrays: dict[str, Any] = {name: memory.arrays[name] for name in names}
        return UnmaskCanvas(spec=spec, place=CudaPlace(), memory=memory, **arrays)

    def rows_needed(self, canvas: UnmaskCanvas, logits: DeviceArray) -> int:
        return 1 if logits is canvas.before else canvas.block

    def mark_seen(self, canvas: UnmaskCanvas, ids: np.ndarray) -> None:
        if canvas.seen is not None:
            seen = self._device.download(canvas.seen)
            seen[0, ids] = 1
            self._device.upload(canvas.seen, seen)
