"""Causal bundles beside llama.cpp on the same model: prompt, generation, memory, cold start.

    python -m dlm_edge.benchmarks.beside_llama_cpp --llama-python PYTHON smol.dlm smol.Q8_0.gguf …

PYTHON is an interpreter with the package llama-cpp-python, which the project neither installs nor
needs. Every round starts one process per model (`decode_worker`) and number of threads, in turn:
it continues a short prompt greedily, then reads a long one twice and times the second. Rates are
medians of the rounds; those per CPU second (of all threads) hold on a machine that does something
else, too. Peak memory is the process's, the interpreter included.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

from ..runtime.bundle.bundle import open_bundle
from ..runtime.cli.common import DlmCommand
from ..runtime.errors import ConfigError, DlmError
from ..runtime.text.tokenizer import Tokenizer
from .report import out_option, print_table, record, require_names, write_json

WORKER = Path(__file__).with_name("decode_worker.py")
SHORT = 16
TEXT = (
    "The lighthouse on the northern rocks was built by hand, and for ninety years somebody climbed "
    "its stairs each evening. When the last keeper left, the lamp was given a motor and a clock. "
)
"""Repeated to the length of the prompts."""
COLUMNS = (
    ("model", "name"),
    ("threads", "threads"),
    ("file MiB", "file_mib"),
    ("prompt tokens/s", "prompt_tps"),
    ("per CPU s", "prompt_cpu_tps"),
    ("generated tokens/s", "generate_tps"),
    ("per CPU s", "generate_cpu_tps"),
    ("first token s", "first_s"),
    ("peak MiB", "peak_mib"),
)


def measure(command: Sequence[str]) -> dict[str, float]:
    """Runs one worker; DlmError if it fails."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    first_s = time.perf_counter() - begin
    rest = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    if process.returncode or first.strip() != "first":
        raise DlmError(f"{' '.join(command)} ended with status {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return {"first_s": first_s, "peak_mib": usage.ru_maxrss * unit / 2**20} | json.loads(rest)


def _command(model: Path, llama_python: str, job: Path) -> list[str]:
    if model.suffix == ".gguf":
        return [llama_python, str(WORKER), "llama", str(model), str(job)]
    module = f"{__package__}.{WORKER.stem}"
    return [sys.executable, "-m", module, "bundle", str(model), str(job)]


def _ids(bundle: Path, length: int) -> list[int]:
    """Token ids of the text, by the bundle's own tokenizer."""
    tokenizer = Tokenizer((open_bundle(bundle).member("tokenizer.json")).read_text())
    return np.resize(tokenizer.encode(TEXT), length).tolist()


@click.command("beside_llama_cpp", cls=DlmCommand)
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--llama-python", default=sys.executable, help="Interpreter with llama-cpp-python.")
@click.option("--threads", default=(1, 2), multiple=True)
@click.option("--rounds", default=3)
@click.option("--prompt", default=512, help="Tokens of the long prompt.")
@click.option("--tokens", default=128, help="Generated tokens.")
@out_option("beside_llama_cpp")
def main(
    models: tuple[Path, ...],
    llama_python: str,
    threads: tuple[int, ...],
    rounds: int,
    prompt: int,
    tokens: int,
    out: Path,
) -> None:
    """Times MODELS, bundles (.dlm) and GGUF files of one causal model, in interleaved rounds."""
    bundles = [model for model in models if model.suffix == ".dlm"]
    if not bundles:
        raise ConfigError("name at least one bundle (.dlm): its tokenizer makes the prompts")
    require_names(models)
    circumstances = record()
    ids = _ids(bundles[0], prompt)
    runs: dict[tuple[str, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.json"
        for done in range(rounds):
            for count in threads:
                content = {"threads": count, "short": ids[:SHORT], "long": ids, "tokens": tokens}
                job.write_text(json.dumps(content))
                for model in models:
                    found = measure(_command(model, llama_python, job))
                    runs.setdefault((model.name, count), []).append(found)
            figures = {"prompt": prompt, "tokens": tokens, "rounds": done + 1}
            write_json(out, circumstances | figures | {"rows": _rows(models, runs)})
    print_table(COLUMNS, _rows(models, runs))


def _rows(
    models: Sequence[Path], runs: Mapping[tuple[str, int], list[dict[str, float]]]
) -> list[dict[str, Any]]:
    """Medians and runs, by model and threads."""
    sizes = {model.name: model.stat().st_size / 2**20 for model in models}
    return [
        {"name": name, "threads": count, "file_mib": sizes[name]}
        | {key: median(run[key] for run in found) for key in found[0]}
        | {"runs": found}
        for (name, count), found in runs.items()
    ]


if __name__ == "__main__":
    main()
