"""Primitive `rows`: rows of logits as distributions, and guidance."""

from typing import Any

from ..core import Primitive
from .contract import RowOps


def _numpy() -> RowOps:
    from .host import NumpyRows

    return NumpyRows()


def _cuda(ops: Any) -> RowOps:
    from .device import CudaRows

    return CudaRows(ops)


ROWS: Primitive[RowOps] = Primitive(name="rows", numpy=_numpy, cuda=_cuda)
