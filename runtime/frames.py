"""Every canvas on the way from noise to text, one after each graph run.

What `dlm-run --watch` draws and `Pipeline.frames` gives to programs. Knows no family and no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from .families.base import Span
from .text_generation import TextGeneration

GIVEN, COMMITTED, PROVISIONAL, MASKED = "given", "committed", "provisional", "masked"
REVISED = "revised"
"""Provisional, and another token than one step before."""

MASK_GLYPH = "░"


class CanvasView:
    """What is known of a canvas: per position its id and its state."""

    def __init__(self, given_ids: Sequence[int], mask_token_id: int | None) -> None:
        """Starts with the fixed tokens; mask ids among them are positions to fill."""
        self._mask = mask_token_id
        self._ids = list(given_ids)
        self._states = [MASKED if i == mask_token_id else GIVEN for i in given_ids]
        self.num_revised = 0
        """Provisional tokens that gave way to another one so far."""

    def apply(self, span: Span) -> None:
        """Takes over one update; tokens that were given stay given."""
        missing = span.position + len(span.token_ids) - len(self._ids)
        self._ids.extend([self._mask or 0] * missing)
        self._states.extend([MASKED] * missing)
        for offset, token_id in enumerate(span.token_ids):
            at = span.position + offset
            if self._states[at] in (GIVEN, COMMITTED):
                continue
            before, shown = self._ids[at], self._states[at] in (PROVISIONAL, REVISED)
            self._ids[at] = token_id
            if span.committed:
                self._states[at] = COMMITTED
            elif span.fixed[offset] if span.fixed else token_id != self._mask:
                revised = shown and before != token_id
                self.num_revised += revised
                self._states[at] = REVISED if revised else PROVISIONAL
            else:
                self._states[at] = MASKED

    def cut(self, length: int) -> None:
        """Drops the positions from `length` on: a text that ended is no longer than that."""
        del self._ids[length:], self._states[length:]

    def runs(self) -> list[tuple[str, list[int]]]:
        """Returns (state, ids) of each longest run of positions in one state, left to right."""
        pairs = zip(self._states, self._ids, strict=True)
        return [(state, [i for _, i in run]) for state, run in groupby(pairs, lambda pair: pair[0])]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A canvas after some graph run."""

    nfe: int
    """Graph runs so far."""
    pieces: tuple[tuple[str, str], ...]
    """(state, text) from left to right; states are `given`, `committed`, `provisional`, `revised`
    (provisional, and another token than one step before) and `masked`, one ░ per position."""
    token_ids: tuple[int, ...]
    """Start token included; masked positions hold the mask id."""
    num_revised: int
    """Provisional tokens that gave way to another one so far."""

    @property
    def text(self) -> str:
        """The whole canvas as text."""
        return "".join(text for _, text in self.pieces)


def canvases(
    generation: TextGeneration, mask_token_id: int | None
) -> Iterator[tuple[int, CanvasView]]:
    """Decodes on, and yields (graph runs so far, the canvas) after each step that changed it.

    The canvas is one object, which goes on changing. The last one is the text: where that ended
    early, what was behind its end is gone.
    """
    canvas = CanvasView(generation.given_ids, mask_token_id)
    nfe = 0
    for span in generation:
        # All spans of one step belong together: they are whole when the first of the next is here.
        if nfe and generation.nfe != nfe:
            yield nfe, canvas
        nfe = generation.nfe
        canvas.apply(span)
    if not generation.fills:
        canvas.cut(len(generation.given_ids) + len(generation.so_far().token_ids))
    yield nfe, canvas


def frames(
    generation: TextGeneration,
    mask_token_id: int | None,
    decode: Callable[[Sequence[int]], str],
) -> Iterator[Frame]:
    """Decodes a text that reports provisional spans, and yields every canvas on the way."""
    for nfe, canvas in canvases(generation, mask_token_id):
        runs = canvas.runs()
        yield Frame(
            nfe=nfe,
            pieces=tuple(
                (state, MASK_GLYPH * len(ids) if state == MASKED else decode(ids))
                for state, ids in runs
            ),
            token_ids=tuple(token for _, ids in runs for token in ids),
            num_revised=canvas.num_revised,
        )
