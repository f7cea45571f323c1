"""The ops on a device: the logits never leave it, and no step allocates.

A commit publishes its progress in a mapped word per slot, which the host reads without a
synchronisation. With `run_ahead`, it returns the progress of the step before unless it is asked to
be exact, so that the device always has a step to do. The step that is then run over a finished
block is not lost: its outputs are those of the commit run (see `Progress`).

Tokens equal those of `NumpyOps` but where a uniform lies on a boundary of the distribution function
to 1e-5, or two scores are equal to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import EngineError
from ...gpu.compile import OPS
from ...gpu.device import Device, DeviceArray, wait_until
from ..core import Form, Ops, Primitive
from .state import RING, SEQUENCE_MASK, Published, unpack

COPY_BLOCKS = 64
"""Thread blocks of a cache append: enough to fill the memory system of a small GPU."""


@dataclass(slots=True)
class Words:
    """The progress words of one slot, and which of them the host has seen."""

    published: np.ndarray
    """Mapped (RING,) uint64."""
    launched: int = field(default=0)
    """Words that will have been published once all that is enqueued has run."""
    known: int = 0
    """Highest word read so far."""

    def reset(self) -> None:
        """Forgets a text's words; nothing of it may still run."""
        self.published[:] = 0
        self.launched = self.known = 0


class CudaOps(Ops):
    """`Ops` on a `Device`."""

    name = "cuda"

    def __init__(self, device: Device, *, run_ahead: bool = True, sources: Path | None = None):
        """Compiles nothing yet.

        Args:
            device: Where the buffers live.
            run_ahead: Whether commits report the step before.
            sources: Where kernel sources are taken from instead of the primitives' folders.
        """
        self.device = device
        self.run_ahead = run_ahead
        self._sources = sources or OPS
        self._bound: dict[str, Any] = {}
        self._kernels = self.kernels("cuda/copy.cu", ("append_rows",))

    @property
    def synchronous(self) -> bool:
        return False

    def bind(self, primitive: Primitive[Form]) -> Form:
        if primitive.name not in self._bound:
            self._bound[primitive.name] = primitive.cuda(self)
        return self._bound[primitive.name]

    def kernels(self, source: str | Path, names: Sequence[str]) -> dict[str, Any]:
        """Compiles a source, a path or one relative to the ops, or finds it compiled.

        Raises:
            DeviceError: That fails.
        """
        return self.device.kernels(self._sources / source, names)

    def wait(self, words: Words, sequence: int) -> Published:
        """Waits for a slot's progress word of a sequence number.

        Raises:
            EngineError: A row of logits could not be sampled.
        """

        def word() -> Published:
            return unpack(int(words.published[sequence % RING]))

        wait_until(self.device, lambda: word().sequence == sequence & SEQUENCE_MASK)
        words.known = max(words.known, sequence)
        found = word()
        if found.failed:
            raise EngineError(
                "a row of logits has no finite highest value among those allowed; the graph "
                "overflows: try another precision, or allow more tokens"
            )
        return found

    def assign(self, target: DeviceArray, source: Any) -> None:
        if isinstance(source, DeviceArray):
            self.device.copy(target, source)
        else:
            self.device.hold(target, np.asarray(source))

    def rows(self, logits: DeviceArray, start: int, count: int) -> DeviceArray:
        return logits.rows(start, count, axis=1)

    def slot(self, array: DeviceArray, index: int, *, axis: int = 0) -> DeviceArray:
        return array.rows(index, 1) if axis == 0 else array.column(index)

    def append_kv(self, kv: DeviceArray, kv_new: DeviceArray, start: int, count: int) -> None:
        # What comes before, a run, will come again; this goes to another place each time.
        self.device.flush(repeats=True)
        pitch, row_bytes = pitches(kv)
        self.device.launch(
            self._kernels["append_rows"],
            COPY_BLOCKS,
            256,
            (kv.pointer + start * pitch, kv_new.pointer, count, row_bytes, pitch),
        )

    def to_host(self, array: DeviceArray) -> np.ndarray:
        return self.device.download(array)


def pitches(kv: DeviceArray) -> tuple[int, int]:
    """Gives the bytes from one row of a cache to the next, and those of a row."""
    row_bytes = kv.nbytes // kv.shape[0]
    return kv.pitch or row_bytes, row_bytes


def slot_of(array: DeviceArray, slot: int) -> DeviceArray:
    """Gives a view of one slot of an array whose first axis is the batch."""
    shape = array.shape[1:]
    offset = slot * prod(shape) * array.dtype.itemsize
    return replace(array, pointer=array.pointer + offset, shape=shape)
