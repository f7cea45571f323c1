"""A canvas: one text's block of ids, being committed step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..core import Progress, Referable
from ..rows.contract import RowSpec

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CanvasSpec(RowSpec):
    """What a canvas is made with."""

    mask_token_id: int
    """Marks masked positions in `ids`; -1 for families without a mask."""
    end_ids: tuple[int, ...]
    """Each of these ends the text; empty: nothing does."""


class Place:
    """Where a block is in its text and in its steps, as the host knows it."""

    __slots__ = ("first", "num_masked", "num_masked_at_start", "position", "step")

    def __init__(self) -> None:
        self.position = 0
        """Absolute position of the block's first token: what its draws are keyed by."""
        self.first = 0
        """Index of the first generated position; an end-of-text token before it is the prompt's."""
        self.step = 0
        """Steps done in this block."""
        self.num_masked = 0
        """Positions still to commit; 0: no step changes the canvas."""
        self.num_masked_at_start = 0

    def begin(self, position: int, first: int, num_masked: int) -> None:
        """Goes to a block's begin."""
        self.position, self.first, self.step = position, first, 0
        self.num_masked = self.num_masked_at_start = num_masked


@dataclass(slots=True, kw_only=True, eq=False)
class Canvas(Referable):
    """The block being committed. Arrays are the ops' own: NumPy here, device arrays elsewhere."""

    spec: CanvasSpec
    place: Place
    ids: Any
    """(1, block) int32: committed ids, and the mask id elsewhere."""
    masked: Any
    """(1, block) bool: positions still to commit. A position that holds the mask id but is not in
    here (behind the text's end) is left alone."""
    chosen: Any
    """(1, block) bool: positions that `sample` chose before it drew, or that move."""
    candidate: Any
    """(1, block) int32: drawn ids."""
    memory: Any = None
    """The ops' own working memory."""

    @property
    def block(self) -> int:
        """Positions."""
        return self.spec.block

    @property
    def vocab_size(self) -> int:
        """Logits of a row."""
        return self.spec.vocab_size


CanvasT = TypeVar("CanvasT", bound=Canvas)
SpecT_contra = TypeVar("SpecT_contra", bound=CanvasSpec, contravariant=True)


class CanvasOps(Protocol[SpecT_contra, CanvasT]):
    """What the primitives `unmask` and `transition` have in common."""

    def canvas(self, spec: SpecT_contra) -> CanvasT:
        """Allocates everything that blocks need; nothing is allocated per step afterwards."""
        ...

    def begin_block(
        self,
        canvas: CanvasT,
        ids: np.ndarray,
        masked: np.ndarray,
        *,
        position: int,
        first: int,
    ) -> int:
        """Starts a block from host arrays; resets step, time, scores and counts.

        Args:
            canvas: The text's.
            ids: (block,) int32.
            masked: (block,) bool.
            position: See `Place`.
            first: See `Place`.

        Returns:
            The number of masked positions.
        """
        ...

    def sample(self, logits: Any, canvas: CanvasT) -> None:
        """Draws candidates for a step; see the primitive's contract.

        Args:
            logits: (1, rows, vocab), float32 or float16, read only; the block's rows come first.
            canvas: Whose positions are drawn; nothing is where none is masked.
        """
        ...

    def commit(self, canvas: CanvasT) -> None:
        """Commits a step. Where nothing is masked, it changes nothing."""
        ...

    def progress(self, canvas: CanvasT, *, exact: bool = False) -> Progress:
        """Gives what the last commit changed.

        Args:
            canvas: The text's.
            exact: Wait for this commit's own progress. Otherwise ops of a device may report the
                one before, so that the device has work while the host thinks.

        Raises:
            EngineError: A row could not be sampled. Ops of the host raise it in `sample`.
        """
        ...

    def ids(self, canvas: CanvasT) -> np.ndarray:
        """Copies the ids to the host: (block,) int32."""
        ...

    def masked(self, canvas: CanvasT) -> np.ndarray:
        """Copies the masked flags to the host: (block,) bool."""
        ...
