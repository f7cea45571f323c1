"""A device that captures what repeats: a step enqueued before in the same way goes out as one.

Calls that only enqueue are collected until a flush. A flush that says `repeats` looks up
what was collected: the first time it goes out call by call (TensorRT wants one such run before it
is captured), the second time it is captured, from then on it is one replay. Two sequences are the
same if all their kernels, addresses, sizes and engine keys are, so a replay does exactly what the
calls would have done. Neither engines, nor ops, nor update rules know of any of this.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DlmError
from .device import Device, DeviceArray, Step

MAX_STEPS = 32
"""Captured steps kept; a text needs one per context bucket."""
MAX_COMPARED_BYTES = 64
"""Of larger uploads only those of arrays that cannot change are remembered: by the array itself."""

Call = tuple[tuple[Hashable, ...], Callable[[], None]]
"""What identifies a call, its kind first, and the call."""


class _Loan:
    """Hands unreferenced memory back once all calls that may use it have gone out."""

    def __init__(self, owner: Any, device: ReplayingDevice) -> None:
        self._owner, self._device = owner, device

    def __del__(self) -> None:
        self._device.retire(self._owner)


class _Held:
    """What arrays are known to hold, by where they lie; no two of them overlap."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._known: dict[int, tuple[int, bytes | np.ndarray]] = {}

    def get(self, array: DeviceArray) -> bytes | np.ndarray | None:
        size, value = self._known.get(array.pointer, (0, None))
        return value if size == array.nbytes else None

    def keep(self, array: DeviceArray, value: bytes | np.ndarray) -> None:
        self.forget(array)
        insort(self._starts, array.pointer)
        self._known[array.pointer] = (array.nbytes, value)

    def forget(self, array: DeviceArray) -> None:
        """Drops what overlaps an array that is written, or new where another was before."""
        begin = max(0, bisect_right(self._starts, array.pointer) - 1)
        end = bisect_left(self._starts, array.pointer + array.nbytes)
        for start in self._starts[begin:end]:
            if start + self._known[start][0] > array.pointer:
                self._starts.remove(start)
                del self._known[start]

    def clear(self) -> None:
        self._starts.clear()
        self._known.clear()


class ReplayingDevice:
    """`Device` that hands everything on to another, repeated steps as captured ones."""

    def __init__(self, inner: Device, note: Callable[[str], None] = lambda line: None) -> None:
        """Wraps a device; `note` gets a line if steps cannot be captured."""
        self.inner, self._note = inner, note
        self.name, self.stream = inner.name, inner.stream
        self._pending: list[Call] = []
        self._steps: OrderedDict[tuple[Hashable, ...], tuple[Step | None, list[Call]]]
        self._steps = OrderedDict()
        self._held = _Held()
        self._retired: list[Any] = []
        self._sending = False
        self.captures = True
        """False once a capture has failed."""
        self.num_captured = 0
        self.num_replayed = 0

    def empty(self, shape: Sequence[int], dtype: Any) -> DeviceArray:
        array = self.inner.empty(shape, dtype)
        self._held.forget(array)
        return replace(array, owner=_Loan(array.owner, self))

    def retire(self, owner: Any) -> None:
        """Keeps freed memory until all that was enqueued before has gone out."""
        if self._pending or self._sending:
            self._retired.append(owner)

    def upload(self, target: DeviceArray, source: np.ndarray) -> None:
        self._held.forget(target)
        self.flush()
        self.inner.upload(target, source)

    def hold(self, target: DeviceArray, source: np.ndarray) -> None:
        known = self._held.get(target)
        if target.nbytes <= MAX_COMPARED_BYTES:
            values = np.ascontiguousarray(source, target.dtype).tobytes()
            if not isinstance(known, bytes) or known != values:
                self.upload(target, source)
                self._held.keep(target, values)
        elif known is not source:
            self.upload(target, source)
            if not source.flags.writeable:
                self._held.keep(target, source)

    def download(self, source: DeviceArray) -> np.ndarray:
        self.flush()
        return self.inner.download(source)

    def copy(self, target: DeviceArray, source: DeviceArray) -> None:
        self._held.forget(target)
        key = ("copy", target.pointer, source.pointer, target.nbytes)
        self._pending.append((key, lambda: self.inner.copy(target, source)))

    def zero(self, target: DeviceArray) -> None:
        self._held.forget(target)
        key = ("zero", target.pointer, target.nbytes)
        self._pending.append((key, lambda: self.inner.zero(target)))

    def mapped(self, shape: Sequence[int], dtype: Any) -> tuple[np.ndarray, int]:
        return self.inner.mapped(shape, dtype)

    def kernels(self, source: Path, names: Sequence[str]) -> dict[str, Any]:
        return self.inner.kernels(source, names)

    def launch(self, kernel: Any, grid: int, block: int, arguments: Sequence[int]) -> None:
        values = tuple(arguments)
        # What is kept of a step keeps its kernels, so that no other gets this id meanwhile.
        key = ("launch", id(kernel), grid, block, values)
        self._pending.append((key, lambda: self.inner.launch(kernel, grid, block, values)))

    def submit(self, key: Hashable, call: Callable[[], None]) -> None:
        self._pending.append((("engine", key), lambda: self.inner.submit(key, call)))

    def flush(self, *, repeats: bool = False) -> None:
        pending, self._pending = self._pending, []
        self._sending = True  # what is freed meanwhile: nothing may be while a step is captured
        try:
            self._send(pending, repeats)
        finally:
            self._sending = False
        self._retired.clear()

    def _send(self, pending: list[Call], repeats: bool) -> None:
        # A run of an engine is many kernels; one launch alone is what a replay would cost.
        worth_it = len(pending) > 1 or any(key[0] == "engine" for key, _ in pending)
        if repeats and self.captures and worth_it:
            step = self._step(pending)
            if step is not None:
                step.replay()
                self.num_replayed += 1
                return
        for _, call in pending:
            call()

    def _step(self, pending: list[Call]) -> Step | None:
        """Gives the captured form of a sequence; None if it is to go out call by call."""
        key = tuple(key for key, _ in pending)
        known = self._steps.pop(key, None)
        if known is None:
            found: tuple[Step | None, list[Call]] = (None, pending)
        elif known[0] is None:
            found = (self._capture(pending), pending)
        else:
            found = known
        self._steps[key] = found
        if len(self._steps) > MAX_STEPS:
            self._steps.popitem(last=False)
        return found[0]

    def _capture(self, pending: list[Call]) -> Step | None:
        def run() -> None:
            for _, call in pending:
                call()

        try:
            step = self.inner.capture(run)
        except DlmError as error:
            self.captures = False
            self._note(f"steps are not captured, so each costs more launches: {error}")
            return None
        self.num_captured += 1
        return step

    def capture(self, run: Callable[[], None]) -> Step:
        self.flush()
        return self.inner.capture(lambda: (run(), self.flush())[0])

    def synchronize(self) -> None:
        self.flush()
        self.inner.synchronize()

    def memory(self) -> tuple[int, int]:
        return self.inner.memory()

    def forget(self) -> None:
        """Drops captured steps, and what was enqueued and not flushed."""
        self._pending.clear()
        self._steps.clear()
        self._held.clear()
        self._retired.clear()
        self.inner.forget()

    def close(self) -> None:
        self.forget()
        self.inner.close()
