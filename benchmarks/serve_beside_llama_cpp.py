"""`dlm-serve` beside the server of llama.cpp's Python package: clients on loopback, one machine.

    python -m dlm_edge.benchmarks.serve_beside_llama_cpp --llama-python PYTHON smol.dlm smol.gguf

PYTHON is an interpreter with llama-cpp-python and what its server needs. Both servers stream
greedy texts of the same prompts to 1, 2, 4 and 8 clients; rounds take turns. Rates per CPU second
are of the server's process alone and hold on a machine that does something else, too. Both models
may be the same; where they are not, they should have about the same size.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import click

from ..jetson.profile.serving import Server, figures, level, stream
from ..runtime.cli.common import DlmCommand
from ..runtime.errors import DlmError
from .report import out_option, print_table, record, write_json

PROMPTS = ("Once upon a time", "The lighthouse on the northern rocks was built by hand")
CLIENTS = (1, 2, 4, 8)
COLUMNS = (
    ("server", "name"),
    ("clients", "clients"),
    ("tokens/s", "tokens_per_s"),
    ("per CPU s", "tokens_per_cpu_s"),
    ("first text, ms p50", "first_ms_p50"),
    ("p99", "first_ms_p99"),
    ("per token, ms p50", "token_ms_p50"),
    ("p99", "token_ms_p99"),
)


@contextmanager
def llama_server(python: str, model: Path, threads: int) -> Iterator[tuple[int, int]]:
    """Runs llama.cpp's server; gives its port and process number."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [python, "-m", "llama_cpp.server", "--model", str(model), "--port", str(port)]
    command += ["--n_threads", str(threads), "--n_threads_batch", str(threads), "--n_ctx", "1024"]
    command += ["--interrupt_requests", "False"]  # or a client ends the text of the one before
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    try:
        while True:
            if process.poll() is not None:
                raise DlmError("llama.cpp's server did not start; start it by hand to see why")
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.2)
        yield port, process.pid
    finally:
        process.kill()
        process.wait()


@contextmanager
def our_server(bundle: Path, threads: int) -> Iterator[tuple[int, int]]:
    """Runs `dlm-serve`; gives its port and process number."""
    with Server(bundle, threads=threads) as server:
        yield server.port, server.pid


def cpu_seconds(pid: int) -> float:
    """Gives what a process has used of the CPU."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(port: int, pid: int, tokens: int, clients: int) -> dict[str, float]:
    """Has clients ask once for every prompt."""
    bodies = [{"prompt": prompt, "max_tokens": tokens, "temperature": 0} for prompt in PROMPTS]
    before = cpu_seconds(pid)
    texts, seconds = level(port, bodies, clients)
    used = cpu_seconds(pid) - before
    found = figures([text for own in texts for text in own], seconds)
    return {**found, "tokens_per_cpu_s": round(found["tokens"] / used, 2)}


@click.command("serve_beside_llama_cpp", cls=DlmCommand)
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.argument("gguf", type=click.Path(path_type=Path, exists=True))
@click.option("--llama-python", required=True, help="Interpreter with llama-cpp-python.")
@click.option("--rounds", type=click.IntRange(min=1), default=3)
@click.option("--tokens", type=click.IntRange(min=1), default=32, help="Of a text.")
@click.option("--threads", type=click.IntRange(min=1), default=1, help="CPU threads.")
@out_option("serve_beside_llama_cpp", help="JSON with every round.")
def main(
    bundle: Path, gguf: Path, llama_python: str, rounds: int, tokens: int, threads: int, out: Path
) -> None:
    """Serves BUNDLE and GGUF, and measures what clients get of each."""
    runs: dict[tuple[str, int], list[dict[str, float]]] = {}
    servers = {
        f"dlm-serve, {bundle.name}": lambda: our_server(bundle, threads),
        f"llama.cpp, {gguf.name}": lambda: llama_server(llama_python, gguf, threads),
    }
    for _ in range(rounds):
        for name, start in servers.items():
            with start() as (port, pid):
                stream(port, {"prompt": "Hello", "max_tokens": 4, "temperature": 0})
                for clients in CLIENTS:
                    found = measure(port, pid, tokens, clients)
                    runs.setdefault((name, clients), []).append(found)
                    click.echo(f"{name} {clients}: {json.dumps(found)}", err=True)
    rows: list[dict[str, Any]] = [
        {"name": name, "clients": clients}
        | {key: median(run[key] for run in found) for key in found[0]}
        for (name, clients), found in runs.items()
    ]
    print_table(COLUMNS, rows)
    every = [{"name": n, "clients": c, "rounds": found} for (n, c), found in runs.items()]
    write_json(out, record() | {"rows": rows, "every": every})


if __name__ == "__main__":
    main()
