"""How good a set of texts is: bits per character of a judge, entropy, distinct-4, repetition.

Each figure can be gamed alone (repetition lowers bits and entropy, noise raises entropy and
distinct-4), so they are shown side by side. All depend on the length of the texts and on how many
there are. A word is a run of characters without white space, case and punctuation kept, the same
for every set. Sources: the entropy per sample is the one that MDLM, ReMDM and arXiv 2409.02908
report beside generative perplexity (there over model tokens; here over words, so that models with
different tokenizers compare); distinct-n is Li et al. 2016, arXiv 1510.03055.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import DataError
from ...runtime.measure.judge import TextScore, bits_per_char
from ...runtime.measure.word_figures import ngrams, repetition, word_entropy

NUM_BOOTSTRAP = 1000
NGRAM = 4

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextQuality:
    """The figures of one set of texts; intervals are 95 %."""

    num_texts: int
    words_per_text: float
    """Mean."""
    judge_bits_per_char: float | None
    """Over all texts together; None without a judge."""
    judge_interval: Interval | None
    """Bootstrap over texts."""
    unigram_entropy: float
    """Nats: the entropy of the words of one text, averaged over texts."""
    entropy_interval: Interval
    """Bootstrap over texts."""
    pooled_entropy: float
    """Nats: the entropy of the words of all texts together."""
    distinct_4: float
    """Share of different word 4-grams among the 4-grams of all texts together."""
    distinct_4_interval: Interval
    """Jackknife over texts (a bootstrap would repeat texts and so invent repetition)."""
    repetition: float
    """Share of a text's word 4-grams that occurred in it before, averaged over texts."""


def _distinct(texts: Sequence[Sequence[str]]) -> tuple[float, Interval]:
    """Distinct-4 of tokenized texts and its delete-one jackknife interval."""
    grams = [ngrams(words, NGRAM) for words in texts]
    total = Counter(gram for text in grams for gram in text)
    num_grams, num_kinds = total.total(), len(total)
    if not num_grams:
        return float("nan"), (float("nan"), float("nan"))
    value = num_kinds / num_grams
    without = []
    for text in grams:
        own = Counter(text)
        lost = sum(total[gram] == count for gram, count in own.items())
        without.append((num_kinds - lost) / max(num_grams - len(text), 1))
    n = len(without)
    error = float(np.sqrt((n - 1) / n * np.square(np.subtract(without, np.mean(without))).sum()))
    return value, (value - 1.96 * error, value + 1.96 * error)


def _bootstrap(rows: NDArray[np.float64], seed: int = 0) -> NDArray[np.float64]:
    """Resamples texts: rows (N, K) to bootstrap sums (NUM_BOOTSTRAP, K)."""
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=NUM_BOOTSTRAP)
    return weights @ rows


def quantiles(values: NDArray[np.float64]) -> Interval:
    """Returns the 2.5 and 97.5 % quantiles."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def bits_draws(scores: Sequence[TextScore], seed: int = 0) -> NDArray[np.float64]:
    """Returns bootstrap draws (NUM_BOOTSTRAP,) of the bits per character over texts."""
    sums = _bootstrap(np.array([(s.bits, s.num_chars) for s in scores], np.float64), seed)
    return sums[:, 0] / np.maximum(sums[:, 1], 1)


def measure(texts: Sequence[str], scores: Sequence[TextScore] | None = None) -> TextQuality:
    """Measures a set of texts; `scores` are the judge's. DataError if empty."""
    words = [text.split() for text in texts]
    if not any(words):
        raise DataError("wanted texts to measure, found not one word; give a set with text in it")
    entropies = np.array([word_entropy(w) for w in words])
    distinct, distinct_interval = _distinct(words)
    return TextQuality(
        num_texts=len(texts),
        words_per_text=float(np.mean([len(w) for w in words])),
        judge_bits_per_char=bits_per_char(scores) if scores else None,
        judge_interval=quantiles(bits_draws(scores)) if scores else None,
        unigram_entropy=float(entropies.mean()),
        entropy_interval=quantiles(_bootstrap(entropies[:, None])[:, 0] / len(entropies)),
        pooled_entropy=word_entropy([word for text in words for word in text]),
        distinct_4=distinct,
        distinct_4_interval=distinct_interval,
        repetition=repetition(words, NGRAM) or 0.0,
    )
