"""Guidance on the device and in NumPy; what all comparisons of the two have in common."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...gpu.device import DeviceArray
from ..canvas.contract import CanvasOps, CanvasT
from ..core import Check, KernelCheck, Progress
from ..cuda.ops import CudaOps
from ..host import NumpyOps
from . import ROWS

BOUNDARY = 1e-5
"""How near a boundary of the distribution function a uniform must lie to be a tie."""
VOCABULARIES = (5, 65, 517, 4096)
"""Ragged and real: a chunk of the kernels is 64 tokens."""


def on_device(ops: CudaOps, values: np.ndarray) -> DeviceArray:
    """Uploads an array."""
    array = ops.device.empty(values.shape, values.dtype)
    ops.device.upload(array, values)
    return array


def commit(form: CanvasOps[Any, CanvasT], canvas: CanvasT, *, exact: bool = False) -> Progress:
    """Commits a step and gives what it changed."""
    form.commit(canvas)
    return form.progress(canvas, exact=exact)


def _guide(found: KernelCheck, ops: CudaOps, dtype: Any) -> None:
    """Some scales over ragged rows; a device may join multiplication and addition."""
    for scale in (0.0, 1.0, 2.5):
        for vocab in VOCABULARIES:
            logits = np.random.default_rng(vocab).normal(size=(4, 3, vocab)).astype(dtype) * 3
            given = on_device(ops, logits)
            device = ops.to_host(ops.bind(ROWS).guide(given, scale))
            host = NumpyOps().bind(ROWS).guide(logits, scale)
            found.cases, found.rows = found.cases + 1, found.rows + host.size
            error = 1e-3 if dtype == np.float16 else 1e-5  # a rounding apart
            if not np.allclose(device, host, rtol=error, atol=error):
                found.faults.append(f"scale {scale}, V = {vocab}: logits differ")


CHECKS: dict[str, Check] = {
    "guide_float32": lambda found, ops: _guide(found, ops, np.float32),
    "guide_float16": lambda found, ops: _guide(found, ops, np.float16),
}
