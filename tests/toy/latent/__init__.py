"""The toy family's own primitive: guided DDIM steps on latents."""

from typing import Any

from .contract import LatentOps
from .host import NumpyLatent


def bind(ops: Any) -> LatentOps:
    """Gives the form that works where the ops' buffers are."""
    device = getattr(ops, "device", None)
    if device is None:
        return NumpyLatent()
    from .device import CudaLatent

    return CudaLatent(device)
