"""The ops in NumPy: the reference for every other backend, and the CPU path."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from .core import Form, Ops, Primitive

if TYPE_CHECKING:
    from ..engines.base import EngineSet


class NumpyOps(Ops):
    """`Ops` on NumPy arrays."""

    name = "numpy"

    def __init__(self) -> None:
        self._bound: dict[str, Any] = {}

    @property
    def synchronous(self) -> bool:
        return True

    def bind(self, primitive: Primitive[Form]) -> Form:
        if primitive.name not in self._bound:
            self._bound[primitive.name] = primitive.numpy()
        return self._bound[primitive.name]

    def together(self) -> AbstractContextManager[None]:
        return nullcontext()

    def assign(self, target: Any, source: Any) -> None:
        target[...] = np.asarray(source).reshape(target.shape)

    def rows(self, logits: Any, start: int, count: int) -> Any:
        return logits[:, start : start + count]

    def slot(self, array: Any, index: int, *, axis: int = 0) -> Any:
        return array[(slice(None),) * axis + (slice(index, index + 1),)]

    def append_kv(self, kv: Any, kv_new: Any, start: int, count: int) -> None:
        kv[start : start + count] = kv_new[:count]

    def to_host(self, array: Any) -> np.ndarray:
        return np.asarray(array)


def ops_for(engines: EngineSet) -> Ops:
    """Gives the ops that belong to an engine set: where its buffers live decides.

    Raises:
        DeviceError: Kernels cannot be compiled or loaded.
    """
    if engines.device is None:
        return NumpyOps()
    from .cuda.ops import CudaOps

    return CudaOps(engines.device)
