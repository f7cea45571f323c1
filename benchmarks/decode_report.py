"""From the rounds of `decode` to its table: medians, ratios within rounds, goals, quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import click

from ..runtime.measure.judge import Judge
from ..runtime.measure.text_quality import cut_words, text_figures
from .contestants import CONTESTANTS
from .report import print_table

GOALS = {"eager": 12.0, "compiled": None, "cached": 2.0, "causal": 1.0}
"""tokens/s of `ours` over theirs."""
OUTSIDE_GOAL = 0.10

COLUMNS = (
    ("threads", "threads"),
    ("contestant", "label"),
    ("tokens/s", "tokens_per_s"),
    ("min..max", "tokens_per_s_range"),
    ("NFE", "nfe"),
    ("ms/NFE", "ms_per_nfe"),
    ("ours/this", "ratio"),
    ("min..max", "ratio_range"),
    ("goal", "goal"),
    ("outside engine", "outside"),
    ("judge bits/char", "judge_bits_per_char"),
    ("95 %", "judge_bits_per_char_interval"),
    ("entropy", "entropy"),
    ("distinct-4", "distinct_4"),
)


def summarise(rounds: Sequence[Mapping[str, Any]], threads: int) -> list[dict[str, Any]]:
    """Makes a row per contestant from rounds: [{threads, results: {contestant: result}}]."""
    chosen = [item["results"] for item in rounds if item["threads"] == threads]
    rows = []
    for name in chosen[0] if chosen else ():
        results = [results[name] for results in chosen]
        speeds = [len(r["token_ids"]) / r["seconds"] for r in results]
        row = {
            "threads": threads,
            "contestant": name,
            "label": CONTESTANTS[name],
            "tokens_per_s": median(speeds),
            "tokens_per_s_range": (min(speeds), max(speeds)),
            "nfe": median(r["nfe"] for r in results),
            "ms_per_nfe": median(1e3 * r["seconds"] / r["nfe"] for r in results),
            "goal": GOALS.get(name),
        }
        if "outside" in results[0]:
            row["outside"] = median(r["outside"] for r in results)
        if name != "ours" and "ours" in chosen[0]:
            ratios = [
                speed * own["ours"]["seconds"] / len(own["ours"]["token_ids"])
                for speed, own in zip(speeds, chosen, strict=True)
            ]
            row["ratio"] = median(1 / ratio for ratio in ratios)
            row["ratio_range"] = (1 / max(ratios), 1 / min(ratios))
        rows.append(row)
    return rows


def agreement(first: Sequence[int], second: Sequence[int]) -> float:
    """Share of equal tokens at equal positions."""
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)


def report(content: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Prints the table and the goals; adds both to `content`."""
    rows = [row for threads in given["threads"] for row in summarise(content["rounds"], threads)]
    if given["judge"] and all(content["texts"].values()):
        with Judge.open(given["judge"]) as judge:
            for row in rows:
                texts = [
                    cut_words(text, given["words"]) for text in content["texts"][row["contestant"]]
                ]
                for name, one in text_figures(texts, judge.score(texts)).items():
                    found = one.interval()
                    row[name], row[f"{name}_interval"] = found.value, found[1:]
    content["rows"] = rows
    print_table(COLUMNS, rows)
    outside = {key: median(shares) for key, shares in content["outside_engine"].items()}
    content["outside_engine_median"] = outside
    for key, share in outside.items():
        click.echo(f"outside engine.run, {key}: {share:.1%} (goal {OUTSIDE_GOAL:.0%})")
    for key, share in content["greedy_agreement"].items():
        click.echo(f"greedy tokens equal to those of (c), {key}: {share:.1%}")
