"""Primitive `transition`: free positions move to other tokens."""

from typing import Any

from ..core import Primitive
from .contract import TransitionOps


def _numpy() -> TransitionOps:
    from .host import NumpyTransition

    return NumpyTransition()


def _cuda(ops: Any) -> TransitionOps:
    from .device import CudaTransition

    return CudaTransition(ops)


TRANSITION: Primitive[TransitionOps] = Primitive(name="transition", numpy=_numpy, cuda=_cuda)
