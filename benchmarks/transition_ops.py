"""What a step of score-based diffusion costs outside the engine, as a share of the step.

    python -m dlm_edge.benchmarks.transition_ops char.dlm bpe.dlm

Each bundle of family sedd writes a text on one thread, graph by graph, and then the engine runs as
often by itself; what the text took longer is the cost outside the engine (feeding, drawing, moving,
streaming). CPU time of the process, since other work on the machine slows the wall clock and hardly
this, and read twice per text only, since reading it takes up to 2 ms in a sandbox. Bundles and
lengths interleave within a round, figures are medians over rounds.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import click

from ..runtime.cli.common import DlmCommand
from ..runtime.errors import ConfigError
from ..runtime.families.base import Request
from ..runtime.families.sedd.rules import ScoreDecoding
from ..runtime.families.table import decoding_settings
from ..runtime.pipeline import Pipeline
from .clocks import LEAST_S
from .report import out_option, print_table, record, write_json

GOALS = ((256, 0.10), (8192, 0.25))
"""(vocabulary at most, share of the step at most)."""
COLUMNS = (
    ("bundle", "bundle"),
    ("graph", "graph"),
    ("parameters", "parameters"),
    ("V", "vocab_size"),
    ("length", "length"),
    ("engine ms", "engine_ms"),
    ("outside ms", "outside_ms"),
    ("share", "share"),
    ("goal", "goal"),
)


def measure_text(pipeline: Pipeline, length: int, steps: int, index: int) -> dict[str, float]:
    """Decodes one whole canvas; gives CPU milliseconds per step inside and outside the engine."""
    manifest, engines = pipeline.manifest, pipeline.engines
    request = Request(
        prompt_ids=(manifest.eos_token_id,),
        max_tokens=length - 1,
        seed=1,
        sample_index=index,
        settings=decoding_settings(manifest, {"steps": steps, "block_size": length}),
        banned_ids=pipeline.tokenizer.missing_ids(manifest.vocab_size),
    )
    rule = pipeline.model.start(request)
    engine, runs = engines.engine(rule.next_run()), 0
    begin = time.process_time()
    while not rule.done:
        rule.feed(engine)
        engine.run()
        rule.update(engine)
        rule.read()
        runs += 1
    between = time.process_time()
    for _ in range(runs):
        engine.run()
    inside = max(time.process_time() - between, LEAST_S)
    outside = between - begin - inside
    return {"engine_ms": 1e3 * inside / runs, "outside_ms": 1e3 * outside / runs}


def goal(vocab_size: int) -> float | None:
    """The share that a vocabulary is held to; None beyond the last goal."""
    return next((share for most, share in GOALS if vocab_size <= most), None)


def measure(paths: tuple[Path, ...], steps: int, rounds: int) -> list[dict[str, Any]]:
    """Measures every graph of every bundle; returns one row each."""
    pipelines = [Pipeline.load(path, threads=1) for path in paths]
    cases = []
    for path, pipeline in zip(paths, pipelines, strict=True):
        if not isinstance(pipeline.settings(), ScoreDecoding):
            raise ConfigError(f"{path} is no bundle of a score-based family; name one of sedd")
        cases += [(pipeline, path, length) for length in sorted({s.rows for s in
                  pipeline.engines.specs})]  # fmt: skip
    figures: list[list[dict[str, float]]] = [[] for _ in cases]
    for number in range(rounds + 1):  # the first makes engines ready, and is not counted
        for case, (pipeline, _, length) in enumerate(cases):
            found = measure_text(pipeline, length, steps if number else 2, number)
            if number:
                figures[case].append(found)
    rows = []
    for (pipeline, path, length), found in zip(cases, figures, strict=True):
        engine, outside = (median(f[key] for f in found) for key in ("engine_ms", "outside_ms"))
        vocab_size = pipeline.manifest.vocab_size
        share, most = outside / (engine + outside), goal(vocab_size)
        rows.append({
            "bundle": path.name, "graph": pipeline.manifest.model["graph"],
            "parameters": pipeline.manifest.model.get("num_parameters"),
            "vocab_size": vocab_size, "length": length, "engine_ms": round(engine, 3),
            "outside_ms": round(outside, 3), "share": round(share, 4), "goal": most,
            "reached": None if most is None else share <= most,
        })  # fmt: skip
    return rows


@click.command(cls=DlmCommand)
@click.argument("bundles", nargs=-1, required=True, metavar="MODEL.dlm...")
@click.option("--steps", type=click.IntRange(min=2), default=16)
@click.option("--rounds", type=click.IntRange(min=1), default=5)
@out_option("transition_ops")
def main(bundles: tuple[str, ...], steps: int, rounds: int, out: Path) -> None:
    """Measures the share of a sedd step that is spent outside the engine, in CPU time.

    Goals: at most 10 % at vocabularies up to 256, at most 25 % up to 8,192.
    """
    circumstances = record()
    rows = measure(tuple(map(Path, bundles)), steps, rounds)
    print_table(COLUMNS, rows)
    write_json(out, circumstances | {"steps": steps, "rounds": rounds, "rows": rows})


if __name__ == "__main__":
    main()
