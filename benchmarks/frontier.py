"""Sweeps decoding rules and says which is the fastest that costs no measurable quality.

    python -m dlm_edge.benchmarks.frontier model.dlm --judge judge.dlm --out frontier.json

A cell is a rule with the value of its option, at a temperature. At each temperature the reference
is one token per step (`--reference`). A cell *costs* quality if, against the reference of its
temperature, at the 95 % level and over texts cut to equal length, bits per character are higher,
unigram entropy lower or distinct-4 lower. What cannot be measured depends on the number of texts:
it stands beside the answer. Each finished cell is saved; the same command goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..jetson.profile.sweep import parse_cell
from ..runtime.cli.common import DlmCommand
from ..runtime.errors import ConfigError, DataError
from ..runtime.measure.judge import Judge
from ..runtime.pipeline import Pipeline
from .quality import compare, read_texts
from .report import print_table, record, write_json
from .samples import draw, read_prompts, show_progress, speed

REFERENCE = "low_confidence"
CELLS = (
    *(f"low_confidence:{steps}" for steps in (16, 8)),
    *(f"threshold:{value}" for value in (0.95, 0.9, 0.8, 0.7, 0.6, 0.5)),
    *(f"factor:{value}" for value in (0.5, 1.0, 2.0)),
    *(f"entropy_bound:{value}" for value in (0.05, 0.1, 0.2, 0.5)),
    "first_hitting",
)
QUICK_CELLS = ("threshold:0.9", "threshold:0.7", "factor:1.0")

COLUMNS = (
    ("temperature", "temperature"),
    ("rule", "cell"),
    ("tokens/NFE", "tokens_per_nfe"),
    ("tokens/s", "tokens_per_s"),
    ("judge bits/char", "judge_bits_per_char"),
    ("95 %", "judge_interval"),
    ("vs reference", "judge_ratio_interval"),
    ("entropy", "unigram_entropy"),
    ("distinct-4", "distinct_4"),
    ("repetition", "repetition"),
    ("texts", "num_texts"),
    ("costs", "costs"),
)


def costs(figures: Mapping[str, Any], reference: Mapping[str, Any]) -> list[str]:
    """Names what is measurably worse than the reference's, from `quality.compare` rows.

    Differences of entropy and distinct-4 are held to their two standard errors together.
    """
    worse = []
    if figures.get("judge_ratio", {"low": 0.0})["low"] > 1:
        worse.append("judge")
    for name, interval in (
        ("unigram_entropy", "entropy_interval"),
        ("distinct_4", "distinct_4_interval"),
    ):
        half_widths = [(row[interval][1] - row[interval][0]) / 2 for row in (figures, reference)]
        if reference[name] - figures[name] > (half_widths[0] ** 2 + half_widths[1] ** 2) ** 0.5:
            worse.append(name.replace("unigram_", "").replace("_", "-"))
    return worse


def judge_cells(
    cells: Mapping[str, Mapping[str, Any]], reference: str, judge: Judge | None, words: int
) -> list[dict[str, Any]]:
    """Compares the cells of one temperature; rows from the fastest to the slowest."""
    names = [reference, *(name for name in cells if name != reference)]
    texts = {name: [sample["text"] for sample in cells[name]["samples"]] for name in names}
    figures = compare(texts, words, judge)
    rows = []
    for name in names:
        row = {"cell": name} | cells[name]["speed"] | figures[name]
        ratio = row.get("judge_ratio")
        row["judge_ratio_interval"] = (ratio["low"], ratio["high"]) if ratio else None
        row["reference"] = name == reference
        worse = costs(figures[name], figures[reference])
        row["costs"] = "reference" if name == reference else ", ".join(worse) or "nothing"
        rows.append(row)
    return sorted(rows, key=lambda row: -row["tokens_per_s"])


def _resume(out: Path, key: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Reads finished cells of an interrupted run: temperature, cell, then its content."""
    if not out.exists():
        return {}
    try:
        found = json.loads(out.read_bytes())
        if found["key"] == key:
            return found["cells"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{out}: wanted a file of this script ({error!r}); move it away") from error
    raise ConfigError(f"{out} is of a run with other settings; move it away")


@click.command("frontier", cls=DlmCommand)
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="JSON; also resumes.")
@click.option("--cell", "cells", multiple=True, help="rule or rule:value.  [default: a grid]")
@click.option("--reference", default=REFERENCE, help="What cells cost against.")
@click.option("--temperature", "temperatures", type=float, multiple=True, default=(1.0,))
@click.option("--num", default=200, help="Texts per cell.")
@click.option("--quick", is_flag=True, help="16 texts per cell and three cells: to try it out.")
@click.option("--seed", default=0)
@click.option("--max-tokens", type=int, help="New tokens at most.  [default: the runtime's]")
@click.option("--prompts", type=click.Path(path_type=Path), help="Continue texts of this file.")
@click.option("--prompt-words", default=8, help="Their first words.")
@click.option("--block", type=int, help="Positions denoised together.  [default: the bundle's]")
@click.option("--threads", type=int, help="CPU threads.  [default: all cores, 8 at most]")
@click.option("--human", type=click.Path(path_type=Path), help="Show these texts beside.")
@click.option("--words", default=100, help="Words per text to cut to.")
@click.option(
    "--judge", "judge_path", type=click.Path(path_type=Path), help="A bundle that reads the texts."
)
def main(bundle: Path | None, out: Path, **given: Any) -> None:
    """Sweeps decoding rules over BUNDLE (default: the model that ships).

    Prints one table per temperature, fastest first, and the fastest cell that costs nothing
    measurable. Temperature 0 needs --prompts: without them every text would be the same.
    """
    judge = click.get_current_context().with_resource(Judge.open(given["judge_path"]))
    grid = given["cells"] or (QUICK_CELLS if given["quick"] else CELLS)
    names = list(dict.fromkeys((given["reference"], *grid)))
    specs = {name: parse_cell(name) for name in names}
    num = 16 if given["quick"] else given["num"]
    prompts = read_prompts(given["prompts"], given["prompt_words"]) if given["prompts"] else [""]
    block = {"block_size": given["block"]} if given["block"] else {}
    with Pipeline.load(bundle, threads=given["threads"]) as pipeline:
        key = {
            "bundle_sha256": pipeline.bundle.sha256,
            "num": num,
            **{name: given[name] for name in ("seed", "max_tokens", "prompt_words", "block")},
            "prompts": prompts[:num] if given["prompts"] else None,
        }
        done = _resume(out, key)
        head = record() | {"key": key}
        for temperature in given["temperatures"]:
            cells = done.setdefault(str(temperature), {})
            for name in names:
                if name in cells:
                    continue
                drawn = draw(
                    pipeline,
                    num,
                    seed=given["seed"],
                    prompts=prompts,
                    max_tokens=given["max_tokens"],
                    settings={**specs[name], "temperature": temperature, **block},
                    progress=show_progress(num, f"{name} at {temperature}"),
                )
                cells[name] = {"speed": speed(drawn), "samples": [asdict(s) for s in drawn]}
                write_json(out, head | {"cells": done})
    rows = _tables(done, names, given, judge)
    write_json(out, head | {"rows": rows, "cells": done})


def _tables(
    done: Mapping[str, Mapping[str, Any]],
    names: Sequence[str],
    given: Mapping[str, Any],
    judge: Judge | None,
) -> list[dict[str, Any]]:
    """Prints every temperature's table and choice; returns all rows."""
    rows: list[dict[str, Any]] = []
    for temperature in given["temperatures"]:
        cells = {name: done[str(temperature)][name] for name in names}
        found = judge_cells(cells, given["reference"], judge, given["words"])
        rows += [{"temperature": temperature} | row for row in found]
        print_table(COLUMNS, rows[-len(found) :])
        best = next(row for row in found if row["costs"] in ("nothing", "reference"))
        click.echo(
            f"temperature {temperature}: fastest without measurable cost over "
            f"{best['num_texts']} texts: {best['cell']}, {best['tokens_per_s']:.4g} tokens/s, "
            f"{best['tokens_per_nfe']:.3g} tokens per NFE"
        )
    if given["human"]:
        human = compare({"human": read_texts(given["human"])}, given["words"], judge, given["num"])
        rows.append({"cell": "human"} | human["human"])
        print_table(COLUMNS, rows[-1:])
    return rows


if __name__ == "__main__":
    main()
