"""What all primitives rest on: where buffers live, how a primitive is bound, what a step reports.

An update step is a fixed, short sequence of calls on buffers that the ops own, so that a device
keeps all of it and captures it once:

    unmask = ops.bind(UNMASK)
    ops.assign(engine input, canvas.ids)      feed
    engine.run()
    unmask.sample(logits, canvas)             candidates and scores of the masked rows
    unmask.commit(canvas)                     selection, scatter, counts, end of text
    unmask.progress(canvas) -> Progress       what that changed

All but the last only enqueue on a device. Texts of a batch have a canvas each and enqueue within
`ops.together()`: one launch then does for all of them what they ask for alike.

Whatever changes from step to step (step number, masked count, hitting time) is state of the canvas,
never an argument. Update rules never index logits, KV or canvas arrays themselves.

A primitive is one folder: contract and state, NumPy form, CUDA form with its sources, and the
comparison of the two that reports and tests run. Knows no primitive, family, engine or text.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np


Form = TypeVar("Form")


class Progress(NamedTuple):
    """What a commit changed, or the commit before it (`behind`).

    A step over a finished block changes nothing. So if `behind` and nothing is masked any more,
    the run just made was one over the finished block, and its outputs are those of a commit run.
    """

    num_masked: int
    """Masked positions left; 0 also when the text ended within the block."""
    num_committed: int
    """Positions committed by this step."""
    num_final: int
    """Leading positions of the block without a mask: their text can be shown."""
    ended: bool
    """True when an end-of-text token stands at index `num_final`, all before it committed."""
    behind: bool = False
    """True when these are the figures of the step before; of the block's begin, in its first."""


class Referable:
    """What a slotted class derives from so that ops notice when its objects are no longer used."""

    __slots__ = ("__weakref__",)


MAX_TIE_SHARE = 0.002
"""Share of drawn rows that may lie on a boundary of the distribution function."""


@dataclass(slots=True, kw_only=True)
class KernelCheck:
    """How one kernel compares with its NumPy form."""

    kernel: str
    cases: int = 0
    rows: int = 0
    """Rows or elements compared."""
    ties: int = 0
    """Rows whose uniform lies on a boundary of the distribution function."""
    faults: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the kernel gives what NumPy gives."""
        return bool(self.cases) and not self.faults and self.ties <= MAX_TIE_SHARE * self.rows + 1


Check = Callable[[KernelCheck, Any], None]
"""Runs one kernel over some cases, beside NumPy, on `CudaOps`, and counts what it finds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Primitive(Generic[Form]):
    """One sampling operation: what makes its two forms, once per ops."""

    name: str
    numpy: Callable[[], Form]
    """Makes the NumPy form."""
    cuda: Callable[[Any], Form]
    """Makes the CUDA form for `CudaOps`: compiles its kernels, or finds them compiled, and imports
    what needs a device only then."""


class Ops(Protocol):
    """Where the buffers live: copies between them, cache appends, and bound primitives."""

    name: str

    @property
    def synchronous(self) -> bool:
        """True when reading a canvas costs no synchronisation, so that text may stream per step."""
        ...

    def bind(self, primitive: Primitive[Form]) -> Form:
        """Gives a primitive's form for these ops, the same one at every call.

        Raises:
            DeviceError: Its kernels cannot be compiled or loaded.
        """
        ...

    def together(self) -> AbstractContextManager[None]:
        """Lets several texts share launches of what they enqueue within; none may read there."""
        ...

    def assign(self, target: Any, source: Any) -> None:
        """Copies a host or own array into a buffer of the same number of elements."""
        ...

    def rows(self, logits: Any, start: int, count: int) -> Any:
        """Gives a view of rows [start, start + count) of (1, block, vocab) logits."""
        ...

    def slot(self, array: Any, index: int, *, axis: int = 0) -> Any:
        """Gives a view of one text's part of an array whose batch is axis 0, or 1 behind rows."""
        ...

    def append_kv(self, kv: Any, kv_new: Any, start: int, count: int) -> None:
        """Writes rows [0, count) of kv_new behind `start` rows of kv.

        Rolling back needs no call: rows from `start` on are ignored by the graph.

        Args:
            kv: (context, 1, …) cache of one text, or its slot of a batch's.
            kv_new: (rows, 1, …), of the run just made.
            start: Rows in the cache.
            count: Rows to write.
        """
        ...

    def to_host(self, array: Any) -> np.ndarray:
        """Gives an array as NumPy, valid until the engine's next run."""
        ...
