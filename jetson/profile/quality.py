"""How good sampled texts are, without torch: bits per character of a judge, and variety.

Without a judge the profiled bundle reads its own texts. A likelihood alone rewards dull, repetitive
text, so there are two figures of variety too: the entropy of a text's words, and the share of its
four-word sequences that occur once in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from ...runtime.measure.judge import Judge
from ...runtime.measure.word_figures import ngrams, word_entropy


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedTexts:
    """Of a set of texts."""

    bits_per_char: float | None
    """Mean over texts; None: all together are shorter than the judge's smallest block."""
    half_width: float | None
    """95 % over texts; None: fewer than two."""
    entropy: float
    """Of words, in nats, mean over texts."""
    distinct_4: float
    """Share of a text's four-word sequences that are different, mean over texts."""
    num_texts: int
    num_scored: int
    """Texts long enough for the judge, or part of what was long enough together."""
    together: bool
    """Whether texts were read as one, since each alone is shorter than the judge's smallest block:
    a model of whole canvases reads nothing shorter than a canvas."""


def measure_quality(texts: Sequence[str], judge: Judge) -> JudgedTexts:
    """Reads every text."""
    words = [text.lower().split() for text in texts]
    bits = [score.bits / score.num_chars for score in judge.score(texts)]
    together = None if bits or len(texts) < 2 else judge.read(*texts)
    whole = together and together.bits / together.num_chars
    return JudgedTexts(
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
