"""Primitive `unmask`: masked positions are given tokens."""

from typing import Any

from ..core import Primitive
from .contract import UnmaskOps


def _numpy() -> UnmaskOps:
    from .host import NumpyUnmask

    return NumpyUnmask()


def _cuda(ops: Any) -> UnmaskOps:
    from .device import CudaUnmask

    return CudaUnmask(ops)


UNMASK: Primitive[UnmaskOps] = Primitive(name="unmask", numpy=_numpy, cuda=_cuda)
