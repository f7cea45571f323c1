"""The toy family's own primitive: DDIM steps on latents."""

from typing import Any

from dlm_edge.runtime.ops.core import Primitive

from .contract import LatentOps
from .host import NumpyLatent


def _cuda(ops: Any) -> LatentOps:
    from .device import CudaLatent

    return CudaLatent(ops.device)


LATENT: Primitive[LatentOps] = Primitive(name="latent", numpy=NumpyLatent, cuda=_cuda)
