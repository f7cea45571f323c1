"""Is the forecast right? Predicted against measured step time and memory on this machine's CPU.

    python -m dlm_edge.benchmarks.predict --out benchmarks/results/predict.json

Each size is an untrained model, traced as `dlm-export` does and run on ONNX Runtime in a process of
its own; the forecast's rates come from the micro-benchmark, which knows none of these models. With
one thread both sides are CPU time, the best of many runs, so other processes disturb them little;
with more they are wall time and want a quiet machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from ..jetson.forecast.forecast import forecast_bundle
from ..jetson.forecast.host import HostRates, host_rates
from ..runtime.bundle.manifest import graph_key
from ..runtime.cli.common import DlmCommand
from .report import print_table, record, write_json
from .untrained import untrained_bundle

SIZES = ("tiny", "small", "medium", "large")
TIME_TOLERANCE, MEMORY_TOLERANCE = 0.25, 0.15


def measure(folder: Path, threads: int, seconds: float) -> dict[str, Any]:
    """Runs `run_shapes` in a fresh process."""
    words = ["-m", "dlm_edge.benchmarks.run_shapes", str(folder), str(threads), str(seconds)]
    done = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def compare(size: str, options: dict[str, Any], rates: HostRates, seconds: float) -> dict[str, Any]:
    """Predicts and measures one size; the figures of each shape and of memory."""
    with tempfile.TemporaryDirectory(prefix="dlm-predict-") as name:
        bundle = untrained_bundle(Path(name), size, **options)
        forecast = forecast_bundle(bundle, "host", tokens_per_nfe=1.0, rates=rates)
        found = measure(Path(name), rates.threads, seconds)
        parameters = bundle.manifest.model["num_parameters"]
    rows = []
    for shape in found["shapes"]:
        part = forecast.graphs[graph_key(shape["graph"], shape["dims"])]
        rows.append(
            {
                "size": size,
                "rows": shape["dims"]["rows"],
                "context": shape["dims"]["context"],
                "macs": part.macs,
                "predicted_ms": part.step_ms,
                "measured_ms": shape["best_ms"],
                "measured_median_ms": shape["median_ms"],
                "ratio": part.step_ms / shape["best_ms"],
            }
        )
    memory = {
        "size": size,
        "predicted_mib": forecast.memory.total,
        "measured_mib": found["resident_mib"],
        "ratio": forecast.memory.total / found["resident_mib"],
        "parts": forecast.memory.parts,
    }
    return {
        "size": size,
        "parameters": parameters,
        "rounds": found["rounds"],
        "steps": rows,
        "memory": memory,
    }


def verdict(results: list[dict[str, Any]]) -> dict[str, Any]:
    """How far off the worst predictions are."""
    steps = [abs(row["ratio"] - 1) for result in results for row in result["steps"]]
    memory = [abs(result["memory"]["ratio"] - 1) for result in results]
    return {
        "steps": len(steps),
        "steps_within_tolerance": sum(error <= TIME_TOLERANCE for error in steps),
        "largest_step_error": max(steps),
        "largest_memory_error": max(memory),
        "step_tolerance": TIME_TOLERANCE,
        "memory_tolerance": MEMORY_TOLERANCE,
    }


@click.command("predict", cls=DlmCommand)
@click.option("--size", "sizes", multiple=True, type=click.Choice(SIZES), help="Default: all four.")
@click.option("--threads", default=1, type=click.IntRange(1))
@click.option("--vocab", default=8192, type=click.IntRange(8))
@click.option("--positions", default=512, type=click.IntRange(64))
@click.option("--seconds", default=8.0, help="Per size.")
@click.option("--again", is_flag=True, help="Measure the machine's rates anew first.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="JSON of all figures.")
def main(
    sizes: tuple[str, ...],
    threads: int,
    vocab: int,
    positions: int,
    seconds: float,
    again: bool,
    out: Path | None,
) -> None:
    """Compares predicted with measured step times and memory."""
    about = record()
    rates = host_rates(threads, lambda line: click.echo(line, err=True), again=again)
    options = {
        "vocab_size": vocab,
        "positions": positions,
        "blocks": (16, 32, 64),
        "contexts": (positions // 2, positions),
    }
    results = []
    for size in sizes or SIZES:
        click.echo(f"{size}: tracing, predicting, measuring", err=True)
        results.append(compare(size, options, rates, seconds))
    columns = (
        ("size", "size"),
        ("rows", "rows"),
        ("context", "context"),
        ("predicted ms", "predicted_ms"),
        ("measured ms", "measured_ms"),
        ("ratio", "ratio"),
    )
    print_table(columns, [row for result in results for row in result["steps"]])
    click.echo()
    columns = (
        ("size", "size"),
        ("predicted MiB", "predicted_mib"),
        ("measured MiB", "measured_mib"),
        ("ratio", "ratio"),
    )
    print_table(columns, [result["memory"] for result in results])
    summary = verdict(results)
    click.echo(
        f"\n{summary['steps_within_tolerance']} of {summary['steps']} step times within "
        f"{TIME_TOLERANCE:.0%}; memory within {summary['largest_memory_error']:.1%}"
    )
    if out is not None:
        rates_json = {"cpu": rates.cpu, "threads": rates.threads, "engine": rates.engine}
        write_json(out, about | {"rates": rates_json, "verdict": summary, "results": results})


if __name__ == "__main__":
    main()
