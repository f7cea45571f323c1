"""Everything that only a GPU can prove, in one run: `make gpu`.

    python -m dlm_edge.benchmarks.gpu_proof

| step | proves |
|---|---|
| tests | `pytest -m gpu`: kernels against NumPy, the device loop against the CPU's |
| memcheck, racecheck | compute-sanitizer over every kernel |
| small, large | `gpu_step`: what a step takes, and each kernel against a copy |

A step that cannot run fails, and so does one in which nothing ran: a run that proves nothing is not
a proof. What was found is written with card, driver, date and command.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from ..runtime.cli.common import DlmCommand, print_json
from ..runtime.gpu.facts import read_gpu
from .report import record, shortened, write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
KERNELS_ALONE = "dlm_edge.benchmarks.gpu_kernels"
FOUND_ERRORS = 9
"""What compute-sanitizer is told to exit with."""
LAST_LINES = 15

Run = Callable[[list[str]], subprocess.CompletedProcess[str]]


def run_command(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs one step; its output is kept."""
    return subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        encoding="utf-8", errors="replace",
    )  # fmt: skip


def prove(command: list[str], run: Run, *, counts: bool = False) -> dict[str, Any]:
    """Runs a step and says whether it proves something.

    Args:
        command: What to run.
        run: Runs it.
        counts: It is pytest, of whose tests some must have passed.
    """
    begin = time.monotonic()
    name = command[0]
    if shutil.which(name) is None:
        return {
            "ok": False,
            "why": f"{Path(name).name} is not here; it comes with the CUDA toolkit",
        }
    done = run(command)
    found: dict[str, Any] = {
        "ok": done.returncode == 0,
        "seconds": round(time.monotonic() - begin, 1),
    }
    if counts:
        numbers = {
            kind: int(number)
            for number, kind in re.findall(r"(\d+) (passed|failed|skipped|errors?)", done.stdout)
        }
        found |= {"tests": numbers, "ok": found["ok"] and numbers.get("passed", 0) > 0}
        if not numbers.get("passed"):
            found["why"] = "no test ran"
    if not found["ok"]:
        found["last_lines"] = done.stdout.strip().split("\n")[-LAST_LINES:]
    return found


def steps(results: Path, rounds: int) -> dict[str, list[str]]:
    """Gives each step's command."""
    python = [sys.executable, "-m"]
    sanitizer = ["compute-sanitizer", "--error-exitcode", str(FOUND_ERRORS), "--tool"]
    found = {
        "tests": [*python, "pytest", "-m", "gpu and not slow", "-n0", "-q", "-rs", "tests"],
        **{tool: [*sanitizer, tool, *python, KERNELS_ALONE] for tool in ("memcheck", "racecheck")},
    }
    for size in ("small", "large"):
        output = str(results / f"gpu-step-{size}.json")
        found[size] = [*python, "dlm_edge.benchmarks.gpu_step", "--size", size,
                       "--rounds", str(rounds), "-o", output]  # fmt: skip
    return found


@click.command("gpu-proof", cls=DlmCommand)
@click.option(
    "--results", type=click.Path(path_type=Path), default=RESULTS, show_default="the repository's"
)
@click.option("--rounds", default=5, help="Of the timings.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as one JSON object.")
def main(results: Path, rounds: int, as_json: bool) -> None:
    """Runs all tests and measurements that need a GPU, and keeps what they found."""
    gpu = read_gpu()  # one line where there is none
    results.mkdir(parents=True, exist_ok=True)
    found: dict[str, Mapping[str, Any]] = {}
    for name, command in steps(results, rounds).items():
        click.echo(f"{name}: {' '.join(map(shortened, command))}", err=True)
        found[name] = prove(command, run_command, counts=name == "tests")
        click.echo(f"{name}: {_told(found[name])}", err=True)
    report = {
        **record(),
        "gpu": gpu.name,
        "sm": gpu.compute_capability,
        "driver": gpu.driver_version,
        "steps": found,
        "ok": all(step["ok"] for step in found.values()),
    }
    write_json(results / "gpu-proof.json", report)
    if as_json:
        print_json(report)
    if not report["ok"]:
        raise SystemExit(1)


def _told(step: Mapping[str, Any]) -> str:
    if step["ok"]:
        return f"ok, {step['seconds']} s {step.get('tests', '')}".rstrip()
    return "\n".join(
        ["FAILED", *([step["why"]] if "why" in step else []), *step.get("last_lines", [])]
    )


if __name__ == "__main__":
    main()
