"""The ops that belong to an engine set: where its buffers live decides."""

from __future__ import annotations

from ..engines.base import EngineSet
from .base import Ops
from .numpy_ops import NumpyOps


def ops_for(engines: EngineSet) -> Ops:
    """Gives NumPy's ops or kernels; DeviceError if the kernels cannot be compiled or loaded."""
    if engines.device is None:
        return NumpyOps()
    from .cuda_ops import CudaOps

    return CudaOps(engines.device)
