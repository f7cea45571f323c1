"""A bundle that reads texts: what they cost it, in bits per character.

Any bundle can be a judge; a causal one (`ar`) is exact, others give a bound. A text is encoded by
the judge's own tokenizer, and bits are per character, so texts of models with different tokenizers
compare.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..pipeline import Pipeline
from .evaluate import evaluate_ids

_MARGIN = 0.05
"""Relative half width asked of one text's bound: far below what texts differ by."""
_MAX_SAMPLES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TextScore:
    """What a text costs a judge."""

    nats: float
    num_tokens: int
    """Of the judge's tokenizer."""
    num_chars: int
    """Characters that were read: a last part block is not, where the judge reads whole blocks."""

    @property
    def bits(self) -> float:
        """The nats as bits."""
        return self.nats / math.log(2)


class Judge:
    """A bundle that reads texts."""

    def __init__(self, pipeline: Pipeline) -> None:
        """Takes a bundle that stays open as long as the judge is used."""
        self._pipeline = pipeline
        self.name = pipeline.bundle.path.name
        model = pipeline.model
        shapes = {} if model.family.exact else model.family.blocks(model.manifest, model.specs)
        cached = [block for block, buckets in shapes.items() if buckets[-1].context >= block]
        self._block = min(cached or shapes, default=None)

    @classmethod
    @contextmanager
    def open(cls, path: Path | None) -> Iterator[Judge | None]:
        """Opens a bundle as a judge, and closes it afterwards; None without a path."""
        if path is None:
            yield None
            return
        with Pipeline.load(path) as pipeline:
            yield cls(pipeline)

    def read(self, *texts: str) -> TextScore | None:
        """Reads texts, one after the other; None: together they are shorter than a block."""
        pipeline = self._pipeline
        framing = pipeline.manifest.framing
        parts = (framing.document(pipeline.tokenizer.encode(text)) for text in texts)
        ids = [token for part in parts for token in part]
        model = pipeline.model
        if len(ids) < model.family.windows(model.manifest, model.specs, self._block).block:
            return None
        result = evaluate_ids(
            model,
            np.array(ids, np.int64),
            block_size=self._block,
            relative_half_width=_MARGIN,
            max_samples=_MAX_SAMPLES,
        )
        num_chars = len(pipeline.tokenizer.decode(ids[1 : 1 + result.num_tokens]))
        if not num_chars:
            return None
        return TextScore(nats=result.total_nats, num_tokens=result.num_tokens, num_chars=num_chars)

    def score(self, texts: Sequence[str]) -> list[TextScore | None]:
        """Reads each text alone; None for one that is empty or shorter than a block."""
        return [self.read(text) if text.strip() else None for text in texts]


def bits_per_char(scores: Sequence[TextScore]) -> float:
    """Returns the bits per character of all texts together; nan without a character."""
    num_chars = sum(score.num_chars for score in scores)
    return sum(score.bits for score in scores) / num_chars if num_chars else float("nan")
