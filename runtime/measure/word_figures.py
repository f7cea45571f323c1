"""Variety of a text's words: entropy and repetition, of which every quality figure is made.

Takes words: the caller decides what a word is (case, punctuation).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from statistics import fmean


def word_entropy(words: Sequence[str]) -> float:
    """Gives the entropy in nats of the words' empirical distribution; 0 for none."""
    counts = Counter(words)
    total = counts.total()
    return -sum(count / total * math.log(count / total) for count in counts.values())


def ngrams(words: Sequence[Hashable], size: int) -> list[tuple[Hashable, ...]]:
    """Lists the runs of `size` words, in order and with repetitions; none of a shorter text."""
    return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]


def repetition(texts: Iterable[Sequence[Hashable]], size: int = 4) -> float | None:
    """Gives the share of a text's runs of `size` that occurred in it before, averaged over texts.

    None: all texts are too short to have such a run.
    """
    found = [ngrams(words, size) for words in texts]
    shares = [1 - len(set(grams)) / len(grams) for grams in found if grams]
    return fmean(shares) if shares else None
