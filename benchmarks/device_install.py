"""What an install with the device's dependencies alone takes: disk, start time, peak memory.

    python -m dlm_edge.benchmarks.device_install --wheel dist/dlm_edge-0.1.0-py3-none-any.whl \
        --python python3.10

Runs `jetson/setup.sh --cpu` into a new environment (from the package index, so it needs one), and
then `dlm-run` of that environment, away from the checkout. Times go from starting the process to
the first byte of text on its stdout; memory is the kernel's peak for the process. The baseline is
the same interpreter importing numpy, onnxruntime and tokenizers. Rounds interleave; figures are
medians with the smallest and largest. On a board the same script measures the board.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import click

from ..runtime.cli.common import DlmCommand
from ..runtime.errors import DlmError
from .cold_start import COLUMNS, IMPORTS, measure_process, summarise
from .report import print_table, record, write_json

SETUP = Path(__file__).resolve().parents[1] / "jetson" / "setup.sh"
MIB = 1 << 20
TOKENS = 64


def set_up(wheel: Path, python: str, folder: Path) -> None:
    """Makes the environment as a user would; DlmError if that fails."""
    command = ["bash", str(SETUP), "--cpu", "--python", python, "--venv", str(folder)]
    result = subprocess.run([*command, "--wheel", str(wheel.resolve())], cwd="/", check=False)
    if result.returncode:
        raise DlmError(f"setup.sh ended with status {result.returncode}; see above")


def installed(folder: Path) -> dict[str, Any]:
    """Returns the environment's packages by version, its Python, and its size on disk."""
    python = str(folder / "bin" / "python")
    said = subprocess.check_output([python, "-m", "pip", "list", "--format", "json"], cwd="/")
    version = subprocess.check_output([python, "-c", "import sys; print(sys.version.split()[0])"])
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "python": version.decode().strip(),
        "packages": {item["name"]: item["version"] for item in json.loads(said)},
        "size_mib": round(size / MIB, 1),
    }


@click.command("device_install", cls=DlmCommand)
@click.option("--wheel", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--python", default="python3", help="Interpreter of the install.")
@click.option("--rounds", type=click.IntRange(min=1), default=5)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON with every run.")
def main(wheel: Path, python: str, rounds: int, threads: int | None, out: Path | None) -> None:
    """Installs WHEEL with the device's dependencies only and measures `dlm-run` there."""
    with tempfile.TemporaryDirectory(prefix="dlm-device-") as name:
        folder = Path(name) / "venv"
        set_up(wheel, python, folder)
        os.environ["XDG_CACHE_HOME"] = str(Path(name) / "cache")
        run = [str(folder / "bin" / "dlm-run"), "--max-tokens", str(TOKENS)]
        run += ["--threads", str(threads)] if threads else []
        commands = {
            "imports only": [str(folder / "bin" / "python"), "-c", IMPORTS],
            "dlm-run": run,
        }
        first = {label: measure_process(command) for label, command in commands.items()}
        runs: dict[str, list[dict[str, float]]] = {label: [] for label in commands}
        for _ in range(rounds):
            for label, command in commands.items():
                runs[label].append(measure_process(command))
        rows = {label: summarise(values) for label, values in runs.items()}
        facts = installed(folder)
    print_table(COLUMNS, [{"name": label} | row for label, row in rows.items()])
    others = ", ".join(f"{n} {v}" for n, v in facts["packages"].items())
    click.echo(f"Python {facts['python']}, {facts['size_mib']:.0f} MiB on disk: {others}")
    click.echo(f"very first run, unpacking the bundle: {first['dlm-run']['first_s']:.2f} s")
    if out is not None:
        write_json(out, record() | facts | {"rows": rows, "runs": runs, "very_first": first})


if __name__ == "__main__":
    main()
