"""Compares sets of texts by the figures of `calibration/losses/text_quality.py` at equal length.

Sets are compared after `match_lengths` has cut them to the same words per text and the same number
of texts, for every figure depends on both.

Run it on text files:
    python -m dlm_edge.benchmarks.quality human=valid.txt ours=samples.json --judge judge.dlm
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from ..calibration.losses.text_quality import bits_draws, measure, quantiles
from ..runtime.cli.common import DlmCommand
from ..runtime.errors import ConfigError, DataError
from ..runtime.measure.judge import Judge, TextScore, bits_per_char
from ..runtime.text.documents import joined, read_pieces
from .report import print_table, record, write_json


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
    """Bits per character of one set over another's, with a 95 % bootstrap interval over both."""
    draws = bits_draws(scores, 1) / bits_draws(reference, 2)
    low, high = quantiles(draws)
    return {"ratio": bits_per_char(scores) / bits_per_char(reference), "low": low, "high": high}


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
        return list(joined(read_pieces(path)))
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
    ("judge bits/char", "judge_bits_per_char"),
    ("95 %", "judge_interval"),
    ("entropy", "unigram_entropy"),
    ("95 %", "entropy_interval"),
    ("distinct-4", "distinct_4"),
    ("95 %", "distinct_4_interval"),
    ("repetition", "repetition"),
)


@click.command("quality", cls=DlmCommand)
@click.argument("sets", nargs=-1, required=True, metavar="NAME=FILE...")
@click.option(
    "--judge", "judge_path", type=click.Path(path_type=Path), help="A bundle that reads the texts."
)
@click.option("--words", default=100, help="Words per text to cut to.")
@click.option("--limit", default=200, help="Texts per set at most.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the figures as JSON.")
def main(
    sets: tuple[str, ...],
    judge_path: Path | None,
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
    judge = click.get_current_context().with_resource(Judge.open(judge_path))
    result = compare(named, words, judge, limit)
    print_table(QUALITY_COLUMNS, [{"name": name} | row for name, row in result.items()])
    if out:
        write_json(out, record() | {"words": words, "sets": result})


if __name__ == "__main__":
    main()
