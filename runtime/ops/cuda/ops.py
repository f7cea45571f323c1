"""The ops on a device: the logits never leave it, and no step allocates.

A commit publishes its progress in a mapped word per text, which the host reads without a
synchronisation. With `run_ahead`, it returns the progress of the step before unless it is asked to
be exact, so that the device always has a step to do. The step that is then run over a finished
block is not lost: its outputs are those of the commit run (see `Progress`).

Tokens equal those of `NumpyOps` but where a uniform lies on a boundary of the distribution function
to 1e-5, or two scores are equal to rounding.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import EngineError
from ...gpu.compile import OPS
from ...gpu.device import Device, DeviceArray, wait_until
from ..core import Form, Ops, Primitive
from .state import RING, SEQUENCE_MASK, Published, unpack

COPY_BLOCKS = 64
"""Thread blocks of a cache append: enough to fill the memory system of a small GPU."""
MAX_TABLES = 64
"""Tables of texts kept; of these, texts that stay together need one per kind of launch."""


class _Launch(NamedTuple):
    """A kernel, and what all texts of a launch have in common."""

    kernel: Any
    blocks: int
    """Thread blocks per text."""
    threads: int
    numbers: tuple[int, ...]
    repeats: bool
    """Whether it comes again alike, step by step."""


class _Part(NamedTuple):
    """What a launch does for one text."""

    launch: _Launch
    pointers: tuple[int, ...]
    """Where the text's data are, and at last its state, by which it is known."""


@dataclass(slots=True)
class Words:
    """The progress words of one text, and which of them the host has seen."""

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
        self._waiting: dict[int, deque[_Part]] | None = None
        """What texts enqueue together, by text; None: each part goes out at once."""
        self._tables: OrderedDict[tuple[int, ...], DeviceArray] = OrderedDict()
        """(texts, 3) int64, see cuda/state.cuh, by what is in them."""
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

    def launch(
        self,
        kernel: Any,
        blocks: int,
        threads: int,
        *pointers: int,
        numbers: tuple[int, ...] = (),
        repeats: bool = True,
    ) -> None:
        """Enqueues a kernel for one text; within `together`, for all that want the same.

        The kernel is given where the first text's data are and its state is, a table of how far the
        other texts' lie behind (cuda/state.cuh), the thread blocks per text, and the numbers.

        Args:
            kernel: One of `kernels`.
            blocks: Thread blocks per text.
            threads: Of a thread block.
            pointers: To the text's data: two at most, and to its state.
            numbers: Further arguments, the same for all texts of a launch.
            repeats: Whether this launch comes again alike, step by step.
        """
        part = _Part(_Launch(kernel, blocks, threads, numbers, repeats), pointers)
        if self._waiting is None:
            self._send([part])
        else:
            self._waiting.setdefault(pointers[-1], deque()).append(part)

    @contextmanager
    def together(self) -> Iterator[None]:
        waiting: dict[int, deque[_Part]] = {}
        self._waiting = waiting
        try:
            yield
        finally:
            self._waiting = None
        while waiting:
            # The text with most to do goes first, so that it joins the others.
            lead = max(waiting.values(), key=len)[0].launch
            self._send([parts.popleft() for parts in waiting.values() if parts[0].launch == lead])
            waiting = {text: parts for text, parts in waiting.items() if parts}

    def _send(self, parts: Sequence[_Part]) -> None:
        launch = parts[0].launch
        if not launch.repeats:  # but what comes before, a run, does
            self.device.flush(repeats=True)
        table = self._table(parts)
        arguments = (*parts[0].pointers, table.pointer, launch.blocks, *launch.numbers)
        self.device.launch(launch.kernel, launch.blocks * len(parts), launch.threads, arguments)
        if not launch.repeats:
            self.device.flush()

    def _table(self, parts: Sequence[_Part]) -> DeviceArray:
        rows: list[int] = []
        for part in parts:
            *data, state = (a - b for a, b in zip(part.pointers, parts[0].pointers, strict=True))
            rows += [state, *data, *(0,) * (2 - len(data))]
        key = tuple(rows)
        if key not in self._tables:
            table = self.device.empty((len(parts), 3), np.int64)
            self.device.upload(table, np.array(rows, np.int64))
            self._tables[key] = table
            if len(self._tables) > MAX_TABLES:
                self._tables.popitem(last=False)
        self._tables.move_to_end(key)
        return self._tables[key]

    def wait(self, words: Words, sequence: int) -> Published:
        """Waits for a text's progress word of a sequence number.

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
        pitch, row_bytes = pitches(kv)
        self.launch(
            self._kernels["append_rows"],
            COPY_BLOCKS,
            256,
            kv_new.pointer,
            kv.pointer + start * pitch,
            numbers=(count, row_bytes, pitch),
            repeats=False,  # it goes to another place each time
        )

    def to_host(self, array: DeviceArray) -> np.ndarray:
        return self.device.download(array)


def pitches(kv: DeviceArray) -> tuple[int, int]:
    """Gives the bytes from one row of a cache to the next, and those of a row."""
    row_bytes = kv.size * kv.dtype.itemsize // kv.shape[0]
    return kv.pitch or row_bytes, row_bytes
