"""Canvases in NumPy: what `unmask` and `transition` share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic

import numpy as np

from ...noise.philox import DrawKind, uniforms
from ..core import Progress
from .contract import CanvasOps, CanvasSpec, CanvasT, Place, SpecT_contra

STEPS_PER_DRAW = 8
"""Steps whose uniforms are made at once: Philox costs about 60 us per call, whatever its size."""


class NumpyPlace(Place, ABC):
    """A block, and the host's working memory for it."""

    __slots__ = (
        "candidate",
        "chosen",
        "draws",
        "ends",
        "hole",
        "ids",
        "masked",
        "progress",
        "spec",
    )

    def __init__(self, spec: CanvasSpec) -> None:
        super().__init__()
        self.spec = spec
        self.ends = np.array(spec.end_ids, np.int32)
        self.ids: np.ndarray
        self.masked: np.ndarray
        self.chosen: np.ndarray
        self.candidate: np.ndarray
        """(block,) views of the canvas's arrays."""
        self.draws: dict[DrawKind, tuple[int, np.ndarray]] = {}
        """By kind: the first step, and (steps, block) uniforms from there on."""
        self.hole = -1
        """Index of the first mask at the last commit, all before it being no end of text; or -1."""
        self.progress = Progress(0, 0, 0, False)
        """Of the last commit."""

    @abstractmethod
    def reset(self) -> None:
        """Resets what is the primitive's own at a block's begin."""

    @abstractmethod
    def sample(self, logits: np.ndarray) -> None:
        """Draws the candidates from (block, vocab) logits."""

    @abstractmethod
    def commit(self) -> Progress:
        """Commits a step."""

    def uniforms(self, kind: DrawKind) -> np.ndarray:
        """Gives this step's uniforms of every position: (block,) float64."""
        made = self.draws.get(kind)
        if made is None or not made[0] <= self.step < made[0] + len(made[1]):
            made = self.draws[kind] = (self.step, self.coming_uniforms(kind))
        return made[1][self.step - made[0]]

    def coming_uniforms(self, kind: DrawKind) -> np.ndarray:
        """Draws the uniforms of this step and some that follow: (steps, block) float64."""
        return self.draw(kind, np.arange(len(self.ids)), STEPS_PER_DRAW)

    def draw(self, kind: DrawKind, places: np.ndarray, num_steps: int) -> np.ndarray:
        """Draws uniforms of some positions from this step on: (num_steps, len(places))."""
        steps = self.step + np.arange(num_steps)[:, None]
        spec = self.spec
        return uniforms(spec.seed, spec.sample_index, self.position + places, steps, kind)

    def end_of_text(self) -> tuple[int, bool]:
        """Gives the number of leading final positions, and whether the text ends behind them."""
        ids, mask = self.ids, self.spec.mask_token_id
        if self.hole >= 0 and ids[self.hole] == mask:
            return self.hole, False
        holes = ids == mask
        num_final = int(holes.argmax())
        if not holes[num_final]:
            num_final = len(ids)
        if num_final > self.first:
            stops = (ids[self.first : num_final, None] == self.ends).any(axis=1)
            stop = int(stops.argmax())
            if stops[stop]:
                return self.first + stop, True
        self.hole = num_final if num_final < len(ids) else -1
        return num_final, False


class NumpyCanvases(CanvasOps[SpecT_contra, CanvasT], Generic[SpecT_contra, CanvasT]):
    """The part of a primitive that does not depend on how positions are committed."""

    def begin_block(
        self,
        canvas: CanvasT,
        ids: np.ndarray,
        masked: np.ndarray,
        *,
        position: int,
        first: int,
    ) -> int:
        own: Any = canvas.place
        own.ids[:] = ids
        own.masked[:] = masked
        own.begin(position, first, int(np.count_nonzero(masked)))
        own.draws.clear()
        own.hole = -1
        own.progress = Progress(own.num_masked, 0, 0, False)
        own.reset()
        return own.num_masked

    def sample(self, logits: Any, canvas: CanvasT) -> None:
        own: Any = canvas.place
        if own.num_masked:
            own.sample(logits.reshape(-1, canvas.vocab_size)[: canvas.block])

    def commit(self, canvas: CanvasT) -> None:
        own: Any = canvas.place
        own.progress = own.commit() if own.num_masked else own.progress._replace(num_committed=0)

    def progress(self, canvas: CanvasT, *, exact: bool = False) -> Progress:
        del exact
        own: Any = canvas.place
        return own.progress

    def ids(self, canvas: CanvasT) -> np.ndarray:
        return canvas.ids[0].copy()

    def masked(self, canvas: CanvasT) -> np.ndarray:
        return canvas.masked[0].copy()


def view_arrays(place: NumpyPlace, arrays: Mapping[str, np.ndarray]) -> None:
    """Gives the working memory the canvas's arrays without their first axis."""
    for name, array in arrays.items():
        setattr(place, name, array[0])


def block_arrays(spec: CanvasSpec) -> dict[str, np.ndarray]:
    """Allocates what every canvas has."""
    shape = (1, spec.block)
    return {
        "ids": np.full(shape, spec.mask_token_id, np.int32),
        "masked": np.zeros(shape, bool),
        "chosen": np.zeros(shape, bool),
        "candidate": np.zeros(shape, np.int32),
    }
