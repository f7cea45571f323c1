"""Variety of a text's words: entropy and n-grams, the parts that every quality figure is made of.

Takes words: the caller decides what a word is (case, punctuation).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


def word_entropy(words: Sequence[str]) -> float:
    """Gives the entropy in nats of the words' empirical distribution; 0 for none."""
    counts = Counter(words)
    total = counts.total()
    return -sum(count / total * math.log(count / total) for count in counts.values())


def ngrams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    """Lists the runs of `size` words, in order and with repetitions; none of a shorter text."""
    return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
