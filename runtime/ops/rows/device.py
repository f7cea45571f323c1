"""The primitive `rows` on a device."""

from __future__ import annotations

import numpy as np

from ...gpu.device import DeviceArray
from ..cuda.ops import CudaOps
from .contract import RowOps

GUIDE_BLOCKS = 128
"""Thread blocks of a guidance: enough to fill the memory system of a small GPU."""


class CudaRows(RowOps):
    """`RowOps` as kernels."""

    def __init__(self, ops: CudaOps) -> None:
        self._ops = ops
        self._kernels = ops.kernels("rows/guide.cu", ("guide_float32", "guide_float16"))

    def guide(self, logits: DeviceArray, scale: float) -> DeviceArray:
        half = logits.shape[0] // 2
        conditional, without = logits.rows(0, half), logits.rows(half, half)
        bits = int(np.float32(scale).view(np.uint32))
        self._ops.device.launch(
            self._kernels[f"guide_{logits.dtype.name}"],
            GUIDE_BLOCKS,
            256,
            (conditional.pointer, without.pointer, conditional.size, bits),
        )
        return conditional
