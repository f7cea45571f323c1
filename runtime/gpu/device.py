"""What ops and engines ask of a GPU: arrays, one stream, mapped words, kernels, captured steps.

`cuda.CudaDevice` is the real one; the tests have another, which runs the same kernels on a CPU.
Knows no binding, no kernel and no canvas.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import DeviceError

WAIT_SECONDS = 30.0
"""A progress word that has not come by then never will."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceArray:
    """An array in device memory, or a view of one; contiguous unless it has a pitch."""

    pointer: int
    """Device address of the first element."""
    shape: tuple[int, ...]
    dtype: np.dtype
    owner: Any
    """Frees the memory with its last reference."""
    pitch: int | None = None
    """Bytes from one row of the first axis to the next, in a view that leaves something out between
    them; None: rows follow each other."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes; only of what lies in one piece, since copies go by it."""
        assert self.pitch is None
        return self.size * self.dtype.itemsize

    def rows(self, start: int, count: int, *, axis: int = 0) -> DeviceArray:
        """Gives a view of rows [start, start + count) of an axis before which all are of size 1."""
        assert prod(self.shape[:axis]) == 1
        assert self.pitch is None
        assert 0 <= start <= start + count <= self.shape[axis]
        offset = start * prod(self.shape[axis + 1 :]) * self.dtype.itemsize
        shape = (*self.shape[:axis], count, *self.shape[axis + 1 :])
        return replace(self, pointer=self.pointer + offset, shape=shape)

    def column(self, index: int) -> DeviceArray:
        """Gives a view of one item of the second axis: (rows, 1, …)."""
        row_bytes = self.nbytes // self.shape[0]
        item_bytes = row_bytes // self.shape[1]
        return replace(
            self,
            pointer=self.pointer + index * item_bytes,
            shape=(self.shape[0], 1, *self.shape[2:]),
            pitch=row_bytes,
        )


class Step(Protocol):
    """A captured sequence of launches and copies."""

    def replay(self) -> None:
        """Enqueues the whole sequence again."""
        ...


class Device(Protocol):
    """One GPU and one stream on it; everything is ordered by the stream unless said otherwise."""

    @property
    def name(self) -> str:
        """What it is, for reports."""
        ...

    @property
    def stream(self) -> int:
        """The stream's handle, for engines."""
        ...

    def empty(self, shape: Sequence[int], dtype: Any) -> DeviceArray:
        """Allocates; DeviceError if there is no memory."""
        ...

    def upload(self, target: DeviceArray, source: np.ndarray) -> None:
        """Copies as many bytes as the target has in; `source` may change at once afterwards."""
        ...

    def download(self, source: DeviceArray) -> np.ndarray:
        """Copies to the host, which waits for all work before it."""
        ...

    def copy(self, target: DeviceArray, source: DeviceArray) -> None:
        """Copies on the device: as many bytes as the target has."""
        ...

    def zero(self, target: DeviceArray) -> None:
        """Sets all bytes to 0."""
        ...

    def mapped(self, shape: Sequence[int], dtype: Any) -> tuple[np.ndarray, int]:
        """Allocates zeroed host memory that kernels see; returns it and its device address."""
        ...

    def kernels(self, source: Path, names: Sequence[str]) -> dict[str, Any]:
        """Compiles a `.cu` file and gives its kernels."""
        ...

    def launch(self, kernel: Any, grid: int, block: int, arguments: Sequence[int]) -> None:
        """Enqueues a kernel; every argument is a device address or a 64-bit integer."""
        ...

    def capture(self, run: Callable[[], None]) -> Step:
        """Records what `run` enqueues, without executing it."""
        ...

    def hold(self, target: DeviceArray, source: np.ndarray) -> None:
        """Uploads values that nothing but `hold`, `upload` and `copy` writes there.

        A device that knows that the target has them already does nothing: it compares small values
        and recognises an array that is not writeable.
        """
        ...

    def submit(self, key: Hashable, call: Callable[[], None]) -> None:
        """Enqueues what an engine enqueues: `call` does it; equal keys mean equal work."""
        ...

    def flush(self, *, repeats: bool = False) -> None:
        """Makes sure that the GPU has all that was enqueued.

        `repeats` says that what was enqueued since the last flush will come again alike, so that
        it is worth being captured.
        """
        ...

    def synchronize(self) -> None:
        """Waits for everything enqueued; DeviceError if any of it failed."""
        ...

    def memory(self) -> tuple[int, int]:
        """Gives free and total bytes of device memory."""
        ...

    def forget(self) -> None:
        """Lets go of whatever refers to memory that is about to be freed."""
        ...

    def close(self) -> None:
        """Lets the GPU go; nothing is enqueued afterwards."""
        ...


class Immediate:
    """What a device need not do itself that hands everything on at once."""

    def hold(self: Device, target: DeviceArray, source: np.ndarray) -> None:
        self.upload(target, source)

    def submit(self, key: Hashable, call: Callable[[], None]) -> None:
        del key
        call()

    def flush(self, *, repeats: bool = False) -> None: ...

    def forget(self) -> None: ...


def wait_until(device: Device, ready: Callable[[], bool]) -> None:
    """Spins until mapped memory says so; raises DeviceError."""
    begin = time.monotonic()
    while not ready():
        if time.monotonic() - begin > WAIT_SECONDS:
            device.synchronize()  # raises what went wrong, if the device knows
            if ready():
                return
            raise DeviceError(
                "the GPU finished its work without reporting progress; "
                "clear the cache of kernels and try again"
            )
