"""Speed of diffusion models of different families at equal numbers of steps, on the CPU.

    python -m dlm_edge.benchmarks.equal_steps masked=mdlm.dlm:ancestral absorb=sedd.dlm --steps 64

Each contestant is NAME=BUNDLE or NAME=BUNDLE:RULE; all are asked for the same number of tokens from
the start token at temperature 1, in one process, one thread, rounds interleaved in rotating order.
Tokens/s counts the positions asked for: a canvas costs the same where its text ends early.
Time is the process's CPU time, so that other programs of the machine disturb less; figures are
medians over rounds, the ratio to the first contestant is taken within rounds. A rule may need
fewer graph runs than steps (nothing changed in a step): `runs` shows it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..runtime.cli.common import DlmCommand
from ..runtime.errors import ConfigError
from ..runtime.pipeline import Pipeline
from .clocks import LEAST_S, timed
from .report import print_table, record, write_json

COLUMNS = (
    ("name", "name"),
    ("steps", "steps"),
    ("tokens/s", "tokens_per_s"),
    ("ratio", "ratio"),
    ("runs", "runs"),
    ("ms/run", "ms_per_run"),
    ("outside the engine", "outside"),
)


def parse(argument: str) -> tuple[str, Path, str | None]:
    """Splits NAME=BUNDLE[:RULE]; raises ConfigError."""
    name, equals, rest = argument.partition("=")
    path, _, rule = rest.partition(":")
    if not (name and equals and path):
        raise ConfigError(f"{argument!r}: wanted NAME=BUNDLE or NAME=BUNDLE:RULE")
    return name, Path(path), rule or None


def decode(
    pipeline: Pipeline, rule: str | None, steps: int, num_tokens: int, seed: int
) -> dict[str, float]:
    """Writes one text; gives its CPU seconds, graph runs, and the share outside the engine."""
    options = {"max_tokens": num_tokens, "seed": seed, "rule": rule, "steps": steps}
    result, cpu = timed(
        lambda: pipeline.generate(temperature=1.0, **options).result(), time.process_time
    )
    inside = max(result.seconds["engine"], LEAST_S)
    outside = result.seconds["update"] + result.seconds["host"]
    return {"cpu": cpu, "runs": result.nfe, "outside": outside / (inside + outside)}


def summarise(name: str, steps: int, rounds: Sequence[Any], first: Sequence[Any], num: int) -> Any:
    """Medians of one contestant's rounds; `first` are the first contestant's, for the ratio."""
    pairs = zip(first, rounds, strict=True)
    return {
        "name": name,
        "steps": steps,
        "tokens_per_s": statistics.median(num / item["cpu"] for item in rounds),
        "ratio": statistics.median(one["cpu"] / item["cpu"] for one, item in pairs),
        "runs": statistics.median(item["runs"] for item in rounds),
        "ms_per_run": statistics.median(1e3 * item["cpu"] / item["runs"] for item in rounds),
        "outside": statistics.median(item["outside"] for item in rounds),
    }


@click.command("equal_steps", cls=DlmCommand)
@click.argument("contestants", nargs=-1, required=True)
@click.option("--steps", type=int, multiple=True, default=(16, 64))
@click.option("--tokens", default=127, help="New tokens of every text.")
@click.option("--rounds", default=5)
@click.option("--out", type=click.Path(path_type=Path), help="Write figures as JSON.")
def main(
    contestants: tuple[str, ...], steps: tuple[int, ...], tokens: int, rounds: int, out: Path | None
) -> None:
    """Measures tokens per CPU second of CONTESTANTS, each NAME=BUNDLE or NAME=BUNDLE:RULE."""
    circumstances = record()
    given = [parse(item) for item in contestants]
    pipelines = [Pipeline.load(path, threads=1) for _, path, _ in given]
    rows = []
    for number in steps:
        found: list[list[dict[str, float]]] = [[] for _ in given]
        for turn in range(-1, rounds):  # round -1 makes engines ready and is not counted
            for offset in range(len(given)):
                index = (turn + offset) % len(given)
                seen = decode(pipelines[index], given[index][2], number, tokens, 1 + turn)
                if turn >= 0:
                    found[index].append(seen)
            click.echo(f"{number} steps: round {turn + 1}/{rounds}", err=True)
        rows += [
            summarise(name, number, measured, found[0], tokens)
            for (name, _, _), measured in zip(given, found, strict=True)
        ]
    print_table(COLUMNS, rows)
    if out:
        hashes = {
            name: pipeline.bundle.sha256
            for (name, _, _), pipeline in zip(given, pipelines, strict=True)
        }
        write_json(out, {**circumstances, "bundles": hashes, "tokens": tokens, "figures": rows})
    for pipeline in pipelines:
        pipeline.close()


if __name__ == "__main__":
    main()
