"""What rules that write one text answer alike: see UpdateRule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Generic

import numpy as np

from ..bundle.manifest import Manifest
from ..ops.canvas.contract import CanvasOps, CanvasT
from ..ops.core import Ops, Progress
from .base import Request, Span
from .window import Text, banned_ids


class TextRule:
    """The state that a rule shows: `_text` and `_num_given` from the start, the rest as it goes."""

    _text: Text
    _num_given: int
    """Ids that the request gave; 0 when infilling."""
    _done = False
    _ended = False
    _approximate = False

    @property
    def done(self) -> bool:
        return self._done

    @property
    def block_size(self) -> int | None:
        return None

    @property
    def tokens(self) -> np.ndarray:
        return self._text.ids

    @property
    def num_given(self) -> int:
        return self._num_given

    @property
    def ended(self) -> bool:
        return self._ended

    @property
    def approximate(self) -> bool:
        return self._approximate


class CanvasRule(TextRule, Generic[CanvasT]):
    """A rule whose text comes off a canvas of masked or noisy ids."""

    _ops: Ops
    _canvas: CanvasT
    _committing: CanvasOps[Any, CanvasT]
    """The primitive that commits positions of the canvas."""
    _block: int
    _mask: int

    @property
    def block_size(self) -> int:
        return self._block

    def _new_text(self, progress: Progress) -> Iterator[Span]:
        """Takes what has become final into the text."""
        position = self._canvas.place.position
        end = min(progress.num_final, self._text.limit - position)
        before = self._text.num_known
        if position + end <= before:
            return
        new = self._text.extend(position, self._committing.ids(self._canvas)[:end])
        if new:
            yield Span(position=before, token_ids=new, committed=True)

    def _provisional(self) -> Span:
        """The canvas now, as far as the text goes."""
        position = self._canvas.place.position
        ids = self._committing.ids(self._canvas)[: self._text.limit - position]
        return Span(
            position=position,
            token_ids=tuple(ids.tolist()),
            committed=False,
            fixed=tuple((ids != self._mask).tolist()),
        )


def end_ids(manifest: Manifest, request: Request) -> tuple[int, ...]:
    """Gives the ids that end a request's text: none does in a gap."""
    if request.template_ids is not None:
        return ()
    return tuple(dict.fromkeys((*manifest.ends, *request.end_ids)))


def undrawable_ids(manifest: Manifest, request: Request) -> tuple[int, ...]:
    """Gives the ids that a request never draws: mask, padding, what it bans; ends in no gap."""
    banned = {*banned_ids(manifest), *request.banned_ids}
    if request.template_ids is not None:
        banned.update(manifest.ends)
    return tuple(sorted(banned))
