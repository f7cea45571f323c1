"""Transitions as kernels: `transit` (a thread block per row) and `commit` (one per text)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..canvas.device import CudaCanvases, CudaPlace
from ..cuda.memory import TextMemory, Values
from ..cuda.ops import CudaOps
from ..cuda.state import read_struct
from .contract import TransitionCanvas, TransitionOps, TransitionSpec

TRANSITION_STATE = read_struct("transition/transition.cuh", "Transition")


class CudaTransition(CudaCanvases[TransitionSpec, TransitionCanvas], TransitionOps):
    """The primitive `transition` on a device."""

    layout = TRANSITION_STATE
    sample_kernel = "transit"
    row_warps = (10, 10)

    def __init__(self, ops: CudaOps) -> None:
        """Compiles the kernels, or finds them compiled; DeviceError if that fails."""
        names = ("transit_float32", "transit_float16", "begin_block", "commit")
        super().__init__(ops, ops.kernels("transition/transition.cu", names))

    def first_values(self, spec: TransitionSpec) -> Values:
        return {
            "transition": np.ascontiguousarray(spec.transition, np.float64),
            "sigma": np.zeros(1, np.float32),
        }

    def write_state(self, state: Any, spec: TransitionSpec) -> None:
        state["num_steps"] = len(spec.transition)

    def make(self, spec: TransitionSpec, memory: TextMemory) -> TransitionCanvas:
        names = ("ids", "masked", "chosen", "candidate", "sigma")
        arrays: dict[str, Any] = {name: memory.arrays[name] for name in names}
        return TransitionCanvas(spec=spec, place=CudaPlace(), memory=memory, **arrays)
