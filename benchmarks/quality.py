"""How good a set of texts is: judge perplexity, unigram entropy, distinct-4 and repetition.

Each figure can be gamed alone (repetition lowers perplexity and entropy, noise raises entropy and
distinct-4), so they stand side by side. All depend on the length of the texts and on how many
there are: sets are compared after `match_lengths` has cut them to the same words per text and the
same number of texts. A word is a run of characters without white space, case and punctuation
kept, the same for every set. Sources: the entropy per sample is the one that MDLM, ReMDM and
arXiv 2409.02908 report beside generative perplexity (there over model tokens; here over words, so
that models with different tokenizers compare); distinct-n is Li et al. 2016, arXiv 1510.03055.

Run it on text files:
    python -m dlm_edge.benchmarks.quality human=valid.txt ours=samples.json --judge stories260K.bin
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from ..runtime.cli_common import DlmCommand
from ..runtime.errors import ConfigError, DataError
from ..runtime.text import read_documents
from .judge import Judge, TextScore, perplexity
from .report import print_table, record, write_json

NUM_BOOTSTRAP = 1000
NGRAM = 4

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """The figures of one set of texts; intervals are 95 %."""

    num_texts: int
    words_per_text: float
    """Mean."""
    judge_perplexity: float | None
    """Per token of the judge, over all texts together; None without a judge."""
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
    """Share of a text's word 4-grams that stood in it before, averaged over texts."""


def _ngrams(words: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]


def _entropy(words: Sequence[str]) -> float:
    """Entropy in nats of the words' empirical distribution; 0 for none."""
    counts = np.array(list(Counter(words).values()), dtype=np.float64)
    share = counts / max(counts.sum(), 1.0)
    return float(-(share * np.log(share)).sum())


def _distinct(texts: Sequence[Sequence[str]]) -> tuple[float, Interval]:
    """Distinct-4 of tokenized texts and its delete-one jackknife interval."""
    grams = [_ngrams(words) for words in texts]
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


def _quantiles(values: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _perplexity_draws(scores: Sequence[TextScore], seed: int = 0) -> NDArray[np.float64]:
    sums = _bootstrap(np.array([(s.nats, s.num_tokens) for s in scores], np.float64), seed)
    return np.exp(sums[:, 0] / np.maximum(sums[:, 1], 1))


def measure(texts: Sequence[str], scores: Sequence[TextScore] | None = None) -> Quality:
    """Measures a set of texts; `scores` are the judge's, one per text. DataError if empty."""
    words = [text.split() for text in texts]
    if not any(words):
        raise DataError("wanted texts to measure, found not one word; give a set with text in it")
    entropies = np.array([_entropy(w) for w in words])
    distinct, distinct_interval = _distinct(words)
    grams = [g for g in map(_ngrams, words) if g]
    repeated = [1 - len(set(g)) / len(g) for g in grams]
    return Quality(
        num_texts=len(texts),
        words_per_text=float(np.mean([len(w) for w in words])),
        judge_perplexity=perplexity(scores) if scores else None,
        judge_interval=_quantiles(_perplexity_draws(scores)) if scores else None,
        unigram_entropy=float(entropies.mean()),
        entropy_interval=_quantiles(_bootstrap(entropies[:, None])[:, 0] / len(entropies)),
        pooled_entropy=_entropy([word for text in words for word in text]),
        distinct_4=distinct,
        distinct_4_interval=distinct_interval,
        repetition=float(np.mean(repeated)) if repeated else 0.0,
    )


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


def match_lengths(
    sets: Mapping[str, Sequence[str]], num_words: int, limit: int | None = None
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Cuts every set to `num_words` words per text and to the same number of texts.

    The number is that of the smallest set, and at most `limit`; the first texts are kept.

    Returns the cut sets, and how many texts of each were left out for being shorter: a set that
    loses many is judged on its long texts only, so read this beside the figures. DataError if a
    set keeps none.
    """
    kept = {
        name: [cut_words(text, num_words) for text in texts if len(text.split()) >= num_words]
        for name, texts in sets.items()
    }
    short = {name: len(texts) - len(kept[name]) for name, texts in sets.items()}
    for name, texts in kept.items():
        if not texts:
            raise DataError(
                f"{name}: wanted texts of at least {num_words} words, found none; lower --words"
            )
    count = min([len(texts) for texts in kept.values()] + ([limit] if limit else []))
    return {name: texts[:count] for name, texts in kept.items()}, short


def judge_ratio(scores: Sequence[TextScore], reference: Sequence[TextScore]) -> dict[str, float]:
    """Perplexity of one set over another's, with a 95 % bootstrap interval over both."""
    draws = _perplexity_draws(scores, 1) / _perplexity_draws(reference, 2)
    low, high = _quantiles(draws)
    return {"ratio": perplexity(scores) / perplexity(reference), "low": low, "high": high}


def compare(
    sets: Mapping[str, Sequence[str]],
    num_words: int,
    judge: Judge | None = None,
    limit: int | None = None,
) -> dict[str, dict]:
    """Measures length-matched sets; judge ratios are against the first of them."""
    matched, short = match_lengths(sets, num_words, limit)
    scores = {name: judge.score(texts) if judge else None for name, texts in matched.items()}
    reference = next(iter(scores.values()))
    result: dict[str, dict] = {}
    for name, texts in matched.items():
        result[name] = asdict(measure(texts, scores[name])) | {"num_short": short[name]}
        own = scores[name]
        if own is not None and reference is not None:
            result[name]["judge_ratio"] = judge_ratio(own, reference)
    return result


def read_texts(path: Path) -> list[str]:
    """Reads texts: a JSON of `samples.py`, or text with documents between <|endoftext|>."""
    if path.suffix != ".json":
        return list(read_documents(path))
    try:
        texts = [sample["text"] for sample in json.loads(path.read_bytes())["samples"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: wanted a file that samples.py wrote ({error!r})") from error
    return [text for text in texts if text.strip()]


QUALITY_COLUMNS = (
    ("set", "name"),
    ("texts", "num_texts"),
    ("too short", "num_short"),
    ("words", "words_per_text"),
    ("judge ppl", "judge_perplexity"),
    ("95 %", "judge_interval"),
    ("entropy", "unigram_entropy"),
    ("95 %", "entropy_interval"),
    ("distinct-4", "distinct_4"),
    ("95 %", "distinct_4_interval"),
    ("repetition", "repetition"),
)


@click.command("quality", cls=DlmCommand)
@click.argument("sets", nargs=-1, required=True, metavar="NAME=FILE...")
@click.option("--judge", "judge_path", type=click.Path(path_type=Path), help="llama2.c model.")
@click.option("--judge-tokenizer", type=click.Path(path_type=Path), help="Its tokenizer.")
@click.option("--words", default=100, show_default=True, help="Words per text to cut to.")
@click.option("--limit", default=200, show_default=True, help="Texts per set at most.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the figures as JSON.")
def main(
    sets: tuple[str, ...],
    judge_path: Path | None,
    judge_tokenizer: Path | None,
    words: int,
    limit: int,
    out: Path | None,
) -> None:
    """Compares sets of texts after cutting them to equal length.

    Each FILE is a text file (documents between <|endoftext|> lines) or a JSON of samples.py. The
    first set is what judge ratios are taken against. Texts shorter than --words are left out and
    counted; sets are cut to the number of texts of the smallest.
    """
    named: dict[str, list[str]] = {}
    for item in sets:
        name, separator, path = item.partition("=")
        if not separator or name in named:
            raise ConfigError(f"wanted sets as different NAME=FILE, found {item!r}")
        named[name] = read_texts(Path(path))
    judge = Judge(judge_path, judge_tokenizer) if judge_path else None
    result = compare(named, words, judge, limit)
    print_table(QUALITY_COLUMNS, [{"name": name} | row for name, row in result.items()])
    if out:
        write_json(out, record() | {"words": words, "sets": result})


if __name__ == "__main__":
    main()
