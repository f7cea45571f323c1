"""A canvas: one block of ids per slot of a batch, being committed step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..core import Progress, Referable
from ..rows.contract import RowSpec

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CanvasSpec(RowSpec):
    """What a slot of a canvas is made with."""

    mask_token_id: int
    """Marks masked positions in `ids`; -1 for families without a mask."""
    eos_token_id: int
    """Ends the text; -1: nothing does."""


class Slot:
    """Where one text of a batch stands, as the host knows it."""

    __slots__ = ("first", "num_masked", "num_masked_at_start", "position", "row", "step")

    def __init__(self) -> None:
        self.position = 0
        """Absolute position of the block's first token: what its draws are keyed by."""
        self.first = 0
        """Index of the first generated position; an end-of-text token before it is the prompt's."""
        self.row = 0
        """Which row of the next logits is the block's first; 0 from the second step on."""
        self.step = 0
        """Steps done in this block."""
        self.num_masked = 0
        """Positions still to commit; 0: the slot is idle, and no step touches it."""
        self.num_masked_at_start = 0


@dataclass(slots=True, kw_only=True, eq=False)
class Canvas(Referable):
    """The blocks being committed. Arrays are the ops' own: NumPy here, device arrays elsewhere."""

    specs: tuple[CanvasSpec, ...]
    """By slot; of one block and vocabulary."""
    slots: tuple[Slot, ...]
    ids: Any
    """(batch, block) int32: committed ids, and the mask id elsewhere."""
    masked: Any
    """(batch, block) bool: positions still to commit. A position that holds the mask id but is not
    in here (behind the text's end) is left alone."""
    chosen: Any
    """(batch, block) bool: positions that `sample` chose before it drew, or that move."""
    candidate: Any
    """(batch, block) int32: drawn ids."""
    memory: Any = None
    """The ops' own working memory."""

    @property
    def block(self) -> int:
        """Positions per slot."""
        return self.specs[0].block

    @property
    def vocab_size(self) -> int:
        """Logits of a row."""
        return self.specs[0].vocab_size


CanvasT = TypeVar("CanvasT", bound=Canvas)
SpecT_contra = TypeVar("SpecT_contra", bound=CanvasSpec, contravariant=True)


class CanvasOps(Protocol[SpecT_contra, CanvasT]):
    """What the primitives `unmask` and `transition` have in common."""

    def canvas(self, specs: Sequence[SpecT_contra]) -> CanvasT:
        """Allocates everything that blocks need; nothing is allocated per step afterwards.

        Args:
            specs: One per slot of the batch.
        """
        ...

    def begin_block(
        self,
        canvas: CanvasT,
        ids: np.ndarray,
        masked: np.ndarray,
        *,
        position: int,
        first: int,
        slot: int = 0,
        row: int = 0,
    ) -> int:
        """Starts a slot's block from host arrays; resets its step, time, scores and counts.

        Args:
            canvas: One slot of it changes.
            ids: (block,) int32.
            masked: (block,) bool.
            position: See `Slot`.
            first: See `Slot`.
            slot: Which text of the batch.
            row: See `Slot`.

        Returns:
            The number of masked positions.
        """
        ...

    def sample(self, logits: Any, canvas: CanvasT) -> None:
        """Draws candidates for a step; see the primitive's contract.

        Args:
            logits: (batch, rows, vocab), float32 or float16, read only; rows are at least the
                block, and a slot's begin at its `row`.
            canvas: Idle slots are not touched.
        """
        ...

    def commit(self, canvas: CanvasT, *, exact: bool = False) -> tuple[Progress, ...]:
        """Commits a step; gives one progress per slot. An idle slot reports what its last did.

        Args:
            canvas: Idle slots are not touched.
            exact: Wait for this commit's own progress. Otherwise ops of a device may report the
                one before, so that the device has work while the host thinks.

        Raises:
            EngineError: A row could not be sampled. Ops of the host raise it in `sample`.
        """
        ...

    def ids(self, canvas: CanvasT, slot: int = 0) -> np.ndarray:
        """Copies a slot's ids to the host: (block,) int32."""
        ...

    def masked(self, canvas: CanvasT, slot: int = 0) -> np.ndarray:
        """Copies a slot's masked flags to the host: (block,) bool."""
        ...
