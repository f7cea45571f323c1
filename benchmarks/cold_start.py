"""Cold start and memory of `dlm-run`, against a process that only imports what it needs.

    python -m dlm_edge.benchmarks.cold_start model.dlm

The bundle is unpacked by a first run that is not counted; files are in the page cache. Times go
from starting the process to the first byte of text on its stdout (the first committed token), and
for the baseline, `python -c "import numpy, onnxruntime, tokenizers"`, to its end. Memory is the
peak resident set size that the kernel reports for the whole process. Rounds interleave; figures
are medians with the smallest and largest.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click

from ..runtime.bundle.bundle import default_bundle_path, open_bundle
from ..runtime.cli.common import DlmCommand
from ..runtime.errors import DlmError
from .report import out_option, print_table, record, write_json

IMPORTS = "import numpy, onnxruntime, tokenizers"
TIME_GOAL = 2.5
"""Times the baseline's seconds."""
MEMORY_GOAL_MIB = 100.0
"""Over the baseline's peak plus the model's size."""
MIB = 1 << 20


def measure_process(command: Sequence[str]) -> dict[str, float]:
    """Runs a command: seconds to its first byte and to its end, and its peak MiB.

    Without output, `first_s` is the time to its end. DlmError if it fails.
    """
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, bufsize=0)
    assert process.stdout is not None
    first = process.stdout.read(1)
    first_s = time.perf_counter() - begin
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    total_s = time.perf_counter() - begin
    process.stdout.close()
    if process.returncode:
        raise DlmError(f"{Path(command[0]).name} ended with status {process.returncode}")
    # Linux counts ru_maxrss in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "first_s": first_s if first else total_s,
        "total_s": total_s,
        "peak_mib": usage.ru_maxrss * unit / MIB,
    }


def summarise(runs: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Medians and ranges of several runs' figures."""
    result: dict[str, Any] = {}
    for name in ("first_s", "total_s", "peak_mib"):
        values = [run[name] for run in runs]
        result |= {name: median(values), f"{name}_range": (min(values), max(values))}
    return result


def _command(bundle: Path | None, threads: int | None, tokens: int) -> list[str]:
    """`dlm-run` as installed beside this interpreter, else as a module."""
    script = Path(sys.executable).with_name("dlm-run")
    run = [str(script)] if script.exists() else [sys.executable, "-m", "dlm_edge.runtime.cli.run"]
    run += [str(bundle)] if bundle else []
    run += ["--threads", str(threads)] if threads else []
    return [*run, "--max-tokens", str(tokens)]


COLUMNS = (
    ("process", "name"),
    ("first token s", "first_s"),
    ("min..max", "first_s_range"),
    ("whole run s", "total_s"),
    ("peak MiB", "peak_mib"),
)


@click.command("cold_start", cls=DlmCommand)
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--rounds", default=10)
@click.option("--quick", is_flag=True, help="Two rounds.")
@click.option("--tokens", default=64, help="New tokens of each run.")
@click.option("--threads", type=int, help="CPU threads.  [default: the runtime's]")
@out_option("cold_start")
def main(
    bundle: Path | None, rounds: int, quick: bool, tokens: int, threads: int | None, out: Path
) -> None:
    """Times a cold `dlm-run` of BUNDLE (default: the model that ships) to its first token.

    The baseline is a process that imports numpy, onnxruntime and tokenizers and ends. Goals: first
    token within 2.5 times the baseline, peak memory within 100 MiB of the baseline plus the size
    of the model's graphs.
    """
    model_mib = open_bundle(bundle or default_bundle_path()).weights_bytes / MIB
    commands = {
        "imports only": [sys.executable, "-c", IMPORTS],
        "dlm-run": _command(bundle, threads, tokens),
    }
    circumstances = record()
    for command in commands.values():
        measure_process(command)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for _ in range(2 if quick else rounds):
        for name, command in commands.items():
            runs[name].append(measure_process(command))
    rows = {name: summarise(values) for name, values in runs.items()}
    print_table(COLUMNS, [{"name": name} | row for name, row in rows.items()])
    baseline, ours = rows["imports only"], rows["dlm-run"]
    ratio = median(
        own["first_s"] / base["first_s"]
        for own, base in zip(runs["dlm-run"], runs["imports only"], strict=True)
    )
    over = ours["peak_mib"] - baseline["peak_mib"] - model_mib
    click.echo(f"first token: {ratio:.2f} x the imports (goal {TIME_GOAL})")
    click.echo(
        f"peak memory: {over:.0f} MiB over the imports plus the model's {model_mib:.1f} MiB "
        f"(goal {MEMORY_GOAL_MIB:.0f})"
    )
    figures = {"first_token_ratio": ratio, "peak_over_mib": over, "model_mib": model_mib}
    write_json(out, circumstances | figures | {"rows": rows, "runs": runs})


if __name__ == "__main__":
    main()
