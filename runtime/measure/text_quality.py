"""How good a set of texts is, without a reference: a judge's bits, variety, repetition.

Each figure can be gamed alone (repetition lowers a judge's bits and entropy, noise raises entropy
and distinct-4), so they are shown side by side. All depend on the length of the texts, distinct-4
also on their number: `match_lengths` makes sets comparable. A word is a run of characters without
white space, case and punctuation kept, the same for every set. Sources: the entropy per text is the
one that MDLM, ReMDM and arXiv 2409.02908 report beside generative perplexity (there over model
tokens; here over words, so that models with different tokenizers compare); distinct-n is Li et al.
2016, arXiv 1510.03055.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Sequence
from itertools import pairwise
from statistics import fmean

import numpy as np

from ..errors import DataError
from .figures import Measured
from .judge import TextScore

NGRAM = 4
"""Words of a run whose repetition counts."""
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
"""What a list of known words holds: letters, apostrophes within."""


def word_entropy(words: Sequence[str]) -> float:
    """Gives the entropy in nats of the words' empirical distribution; 0 for none."""
    counts = Counter(words)
    total = counts.total()
    return -sum(count / total * math.log(count / total) for count in counts.values())


def ngrams(words: Sequence[Hashable], size: int) -> list[tuple[Hashable, ...]]:
    """Lists the runs of `size` words, in order and with repetitions; none of a shorter text."""
    return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]


def repeated_share(words: Sequence[Hashable], size: int = NGRAM) -> float | None:
    """Gives the share of a text's runs of `size` that occurred in it before; None without one."""
    grams = ngrams(words, size)
    return 1 - len(set(grams)) / len(grams) if grams else None


def repetition(texts: Iterable[Sequence[Hashable]], size: int = NGRAM) -> float | None:
    """Gives the mean of `repeated_share`; None: all texts are too short to have such a run."""
    shares = [share for words in texts if (share := repeated_share(words, size)) is not None]
    return fmean(shares) if shares else None


def longest_repeat(words: Sequence[str]) -> int:
    """Gives the number of words of the longest run that occurs twice in a text."""
    tails = sorted(list(words[start:]) for start in range(len(words)))
    longest = 0
    for one, other in pairwise(tails):
        same = 0
        for a, b in zip(one, other, strict=False):
            if a != b:
                break
            same += 1
        longest = max(longest, same)
    return longest


def known_words(texts: Iterable[str]) -> frozenset[str]:
    """Lists the different words of texts in lower case, without punctuation."""
    return frozenset(word for text in texts for word in _WORD.findall(text.lower()))


def text_figures(
    texts: Sequence[str],
    scores: Sequence[TextScore | None] | None = None,
    known: Collection[str] | None = None,
) -> dict[str, Measured]:
    """Measures a set of texts.

    Args:
        texts: An empty one counts for nothing: it keeps its place among sets that are compared in
            pairs.
        scores: What a judge found of each, if one read them; None for a text that it could not.
        known: Words of `known_words` that count as known.

    Returns:
        `entropy`: nats, of the words of one text, averaged over texts. `distinct_4`: share of
        different word 4-grams among those of all texts together (a jackknife: drawing texts with
        replacement would invent repetition). `repetition`: share of a text's 4-grams that occurred
        in it before. `longest_repeat`: words. `words`: per text. With scores `judge_perplexity`
        (per token of the judge) and `judge_bits_per_char`. With known words `known_words`: their
        share.

    Raises:
        DataError: Not one word.
    """
    words = [text.split() for text in texts]
    if not any(words):
        raise DataError("wanted texts to measure, found not one word; give a set with text in it")

    def mean(values: Iterable[float | None]) -> Measured:
        return Measured.mean([v if w else None for v, w in zip(values, words, strict=True)])

    found = {
        "entropy": mean(map(word_entropy, words)),
        "distinct_4": _distinct(words),
        "repetition": mean(map(repeated_share, words)),
        "longest_repeat": mean(map(longest_repeat, words)),
        "words": mean(map(len, words)),
    }
    if scores is not None:
        rows = [(s.nats, s.num_tokens, s.bits, s.num_chars) if s else (0.0,) * 4 for s in scores]
        sums = np.array(rows, np.float64)
        found["judge_perplexity"] = Measured(sums[:, :2], "perplexity")
        found["judge_bits_per_char"] = Measured(sums[:, 2:])
    if known is not None:
        seen = [_WORD.findall(text.lower()) for text in texts]
        counts = [(sum(word in known for word in own), len(own)) for own in seen]
        found["known_words"] = Measured(np.array(counts, np.float64))
    return found


def _distinct(texts: Sequence[Sequence[str]]) -> Measured:
    grams = [ngrams(words, NGRAM) for words in texts]
    total = Counter(gram for text in grams for gram in text)
    num_grams, num_kinds = total.total(), len(total)
    if not num_grams:
        return Measured.mean([None] * len(texts))
    value = num_kinds / num_grams
    counted = sum(map(bool, grams))
    parts: list[float | None] = []
    for text in grams:
        own = Counter(text)
        lost = sum(total[gram] == count for gram, count in own.items())
        without = (num_kinds - lost) / max(num_grams - len(text), 1)
        # Tukey's pseudo-value, whose mean has the jackknife's variance.
        parts.append(counted * value - (counted - 1) * without if text else None)
    return Measured.mean(parts, value)


def cut_words(text: str, num_words: int) -> str:
    """Keeps the first `num_words` words and the white space between them."""
    end, seen = 0, 0
    stripped = text.strip()
    while seen < num_words and end < len(stripped):
        while end < len(stripped) and stripped[end].isspace():
            end += 1
        while end < len(stripped) and not stripped[end].isspace():
            end += 1
        seen += 1
    return stripped[:end]
