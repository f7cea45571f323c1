"""How good sampled texts are, without torch: bits per character of a judge, and variety.

The judge is any bundle; a causal one (`ar`) is exact. Without one, the profiled bundle's own bound
is taken. Bits per character compare across tokenizers. A likelihood alone rewards dull, repetitive
text, so two figures of variety stand beside it: the entropy of a text's words, and the share of its
four-word sequences that occur once in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from ...runtime.errors import DataError
from ...runtime.families import find_family
from ...runtime.measure.evaluate import evaluate_ids
from ...runtime.measure.word_figures import ngrams, word_entropy
from ...runtime.pipeline import Pipeline

_MARGIN = 0.05
"""Relative half width asked of one text's bound: far below what texts differ by."""
_MAX_SAMPLES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Of a set of texts."""

    bits_per_char: float | None
    """Mean over texts; None: all together are shorter than the judge's smallest block."""
    half_width: float | None
    """95 % over texts; None: fewer than two."""
    entropy: float
    """Of words, in nats, mean over texts."""
    distinct_4: float
    num_texts: int
    num_scored: int
    """Texts long enough for the judge, or part of what was long enough together."""
    together: bool
    """Whether texts were read as one, since each alone is shorter than the judge's smallest block:
    a model of whole canvases reads nothing shorter than a canvas."""


class Judge:
    """A bundle that reads texts."""

    def __init__(self, pipeline: Pipeline) -> None:
        """Takes a bundle that stays open as long as the judge is used."""
        self._pipeline = pipeline
        manifest, specs = pipeline.manifest, pipeline.engines.specs
        family = find_family(manifest.family)
        shapes = {} if family.exact else family.blocks(manifest, specs)
        cached = [block for block, buckets in shapes.items() if buckets[-1].context >= block]
        self._block = min(cached or shapes, default=None)

    def bits_per_char(self, *texts: str) -> float | None:
        """Returns what texts cost the judge, one behind the other; None: too short to be read."""
        pipeline = self._pipeline
        parts = [pipeline.tokenizer.encode(text) for text in texts]
        ids = [token for part in parts for token in (pipeline.manifest.eos_token_id, *part)]
        try:
            result = evaluate_ids(
                pipeline.manifest,
                pipeline.engines,
                np.array(ids, np.int64),
                block_size=self._block,
                relative_half_width=_MARGIN,
                max_samples=_MAX_SAMPLES,
            )
        except DataError:
            return None
        read, left = 0, result.num_tokens
        for part in parts:
            read += len(pipeline.tokenizer.decode(part[: max(left, 0)]))
            left -= len(part) + 1
        return result.total_nats / math.log(2) / read if read else None


def measure_quality(texts: Sequence[str], judge: Judge) -> Quality:
    """Reads every text."""
    words = [text.lower().split() for text in texts]
    found = [judge.bits_per_char(text) for text in texts]
    bits = [value for value in found if value is not None]
    whole = None if bits or len(texts) < 2 else judge.bits_per_char(*texts)
    return Quality(
        bits_per_char=fmean(bits) if bits else whole,
        half_width=1.96 * stdev(bits) / math.sqrt(len(bits)) if len(bits) > 1 else None,
        entropy=fmean([word_entropy(each) for each in words] or [0.0]),
        distinct_4=fmean([distinct(each, 4) for each in words] or [0.0]),
        num_texts=len(texts),
        num_scored=len(bits) if whole is None else len(texts),
        together=whole is not None,
    )


def distinct(words: Sequence[str], size: int) -> float:
    """Returns the share of word sequences of this size that are different; 0 without any."""
    grams = ngrams(words, size)
    return len(set(grams)) / len(grams) if grams else 0.0
