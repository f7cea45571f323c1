"""What drafting gains: tokens per run, and tokens/s against causal decoding of the same weights.

    python -m dlm_edge.benchmarks.draft_verify tidar.dlm --prompts valid.txt --out result.json

Greedy. Every text is written by the same engine causally, token by token, and by drafts of each
block size that the bundle has, rounds interleaved in rotating order. All must be equal token for
token, or the benchmark fails; but where int8 rounds, the last bits of a sum, which depend on the
shape of a run, may decide a token, so there equal texts are counted. Texts are counted up to the
first n-gram of 8 tokens that comes back: repetition is easy to draft. Time is the process's CPU
time on one thread; ratios are taken within rounds, medians over them. `break-even` is how many
tokens a run would have to make for drafting to be as fast as causal decoding on this machine: the
ratio of what one run of each takes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import click

from ..runtime.cli.common import DlmCommand
from ..runtime.errors import ConfigError, DataError, DlmError
from ..runtime.families.table import decoding_blocks
from ..runtime.measure.text_quality import cut_words, ngrams
from ..runtime.pipeline import Pipeline
from ..runtime.text.documents import joined, read_pieces
from .clocks import timed
from .report import print_table, record, write_json

CAUSAL = "next_token"
REPEAT = 8
"""Tokens of the n-gram whose return ends the count."""
COLUMNS = (
    ("decoding", "name"),
    ("tokens", "tokens"),
    ("runs", "nfe"),
    ("tokens/run", "tokens_per_nfe"),
    ("characters/run", "characters_per_nfe"),
    ("ms/run", "ms_per_nfe"),
    ("tokens/s", "tokens_per_s"),
    ("ratio", "ratio"),
    ("break-even", "break_even"),
    ("equal texts", "equal"),
)


def first_repeat(ids: Sequence[int], given: int, size: int = REPEAT) -> int:
    """Gives how many of the ids behind `given` stand before an n-gram comes back for the first
    time; all of them if none does."""
    seen: set[tuple[int, ...]] = set()
    for end in range(size, len(ids) + 1):
        gram = tuple(ids[end - size : end])
        if gram in seen and end > given:
            return max(0, end - size - given)
        seen.add(gram)
    return len(ids) - given


def settings_of(block: int | None) -> dict[str, Any]:
    """Gives the decoding settings of a contestant; None is the causal one."""
    greedy: dict[str, Any] = {"temperature": 0.0}
    if block is None:
        return greedy | {"rule": CAUSAL}
    return greedy | {"rule": "draft_verify", "block_size": block}


def write(pipeline: Pipeline, prompt: str, length: int, block: int | None) -> dict[str, Any]:
    """Writes one text; gives its ids, runs and CPU seconds."""
    result, cpu = timed(
        lambda: pipeline.generate(prompt, max_tokens=length, **settings_of(block)).result(),
        time.process_time,
    )
    return {"ids": result.token_ids, "nfe": result.nfe, "cpu": cpu}


def lengths_of(pipeline: Pipeline, prompts: Sequence[str], longest: int) -> list[int]:
    """Gives how many tokens of each causal text count; raises ConfigError if hardly any do."""
    lengths = []
    for prompt in prompts:
        given = pipeline.manifest.framing.prompt(pipeline.tokenizer.encode(prompt))
        new = write(pipeline, prompt, longest, None)["ids"]
        lengths.append(first_repeat([*given, *new], len(given)))
    if not any(lengths):
        raise ConfigError("every text repeats itself at once: take other prompts or another model")
    return lengths


def compare(
    pipeline: Pipeline, prompts: Sequence[str], lengths: Sequence[int], rounds: int
) -> list[dict[str, Any]]:
    """Times every contestant on every prompt; one row each, the causal one first.

    Raises:
        DlmError: A drafted text is not the causal one, and nothing was rounded to int8.
    """
    exact = pipeline.manifest.precision != "int8"
    contestants: list[int | None] = [None, *sorted(decoding_blocks(pipeline.manifest))]
    cpu: dict[int | None, list[float]] = {one: [] for one in contestants}
    nfe = dict.fromkeys(contestants, 0)
    texts: dict[int | None, dict[int, tuple[int, ...]]] = {one: {} for one in contestants}
    for number in range(rounds):
        turn = number % len(contestants)
        totals = dict.fromkeys(contestants, 0.0)
        nfe = dict.fromkeys(contestants, 0)
        for index, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
            if not length:
                continue
            for one in [*contestants[turn:], *contestants[:turn]]:
                found = write(pipeline, prompt, length, one)
                totals[one] += found["cpu"]
                nfe[one] += found["nfe"]
                texts[one][index] = found["ids"]
            if exact and len({texts[one][index] for one in contestants}) > 1:
                raise DlmError(f"drafts and causal decoding differ on {prompt!r}")
        for one in contestants:
            cpu[one].append(totals[one])
    rows = []
    for one in contestants:
        written = texts[one].values()
        tokens = sum(map(len, written))
        characters = sum(len(pipeline.tokenizer.decode(ids)) for ids in written)
        # Per token: in int8 one text may be longer than the other.
        share = sum(map(len, texts[None].values())) / tokens
        ratios = [slow / fast / share for slow, fast in zip(cpu[None], cpu[one], strict=True)]
        seconds = statistics.median(cpu[one])
        runs = nfe[one] / nfe[None] * share
        grams = [gram for ids in written for gram in ngrams([str(i) for i in ids], 4)]
        rows.append(
            {
                "name": "causal" if one is None else f"drafts of {one}",
                "block": one,
                "tokens": tokens,
                "nfe": nfe[one],
                "tokens_per_nfe": tokens / nfe[one],
                "characters_per_nfe": characters / nfe[one],
                "ms_per_nfe": 1e3 * seconds / nfe[one],
                "tokens_per_s": tokens / seconds,
                "ratio": statistics.median(ratios),
                "break_even": 1.0 / (statistics.median(ratios) * runs),
                "distinct_4": len(set(grams)) / max(1, len(grams)),
                "equal": sum(texts[one][index] == ids for index, ids in texts[None].items()),
            }
        )
    return rows


@click.command("draft_verify", cls=DlmCommand)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--prompts", required=True, type=click.Path(path_type=Path), help="Held-out texts.")
@click.option(
    "--prompt-words",
    type=click.IntRange(1),
    default=8,
    help="First words of each.",
)
@click.option("--num", type=click.IntRange(1), default=50, help="Texts.")
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    default=200,
    help="Of a text, at most.",
)
@click.option("--rounds", type=click.IntRange(1), default=3)
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(
    bundle: Path,
    prompts: Path,
    prompt_words: int,
    num: int,
    max_tokens: int,
    rounds: int,
    out: Path | None,
) -> None:
    """Measures what drafting gains BUNDLE, a model of family tidar, over causal decoding."""
    circumstances = record()
    with Pipeline.load(bundle, threads=1) as pipeline:
        if pipeline.manifest.family != "tidar":
            raise ConfigError(f"{bundle}: family {pipeline.manifest.family}, which drafts nothing")
        documents = joined(read_pieces(prompts))
        long = (text for text in documents if len(text.split()) > prompt_words)
        chosen = [cut_words(text, prompt_words) for text in islice(long, num)]
        if not chosen:
            raise DataError(f"{prompts} has no text of over {prompt_words} words; give another")
        lengths = lengths_of(pipeline, chosen, max_tokens)
        rows = compare(pipeline, chosen, lengths, rounds)
        sha256 = pipeline.bundle.sha256
    print_table(COLUMNS, rows)
    click.echo(
        f"{min(row['equal'] for row in rows)} of {sum(map(bool, lengths))} texts equal token for "
        f"token under every decoding, distinct-4 {rows[0]['distinct_4']:.3f}"
    )
    if out:
        write_json(
            out,
            circumstances
            | {"bundle_sha256": sha256, "prompts": len(chosen), "rounds": rounds, "rows": rows},
        )


if __name__ == "__main__":
    main()
