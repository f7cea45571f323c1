"""Primitive `drafts`: drafted tokens are verified and drafted again."""

from typing import Any

from ..core import Primitive
from .contract import DraftOps


def _numpy() -> DraftOps:
    from .host import NumpyDrafts

    return NumpyDrafts()


def _cuda(ops: Any) -> DraftOps:
    from .device import CudaDrafts

    return CudaDrafts(ops)


DRAFTS: Primitive[DraftOps] = Primitive(name="drafts", numpy=_numpy, cuda=_cuda)
