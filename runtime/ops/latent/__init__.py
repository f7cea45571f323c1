"""Primitive `latent`: latents move to a model's estimate."""

from typing import Any

from ..core import Primitive
from .contract import LatentOps


def _numpy() -> LatentOps:
    from .host import NumpyLatent

    return NumpyLatent()


def _cuda(ops: Any) -> LatentOps:
    from .device import CudaLatent

    return CudaLatent(ops)


LATENT: Primitive[LatentOps] = Primitive(name="latent", numpy=_numpy, cuda=_cuda)
