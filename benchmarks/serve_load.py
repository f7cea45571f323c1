"""`dlm-serve` under clients that behave badly: every answer is right or a proper error.

    python -m dlm_edge.benchmarks.serve_load

Clients on loopback ask for texts, whole and streamed, with canvases and without; some go away in
the middle of an answer, some send bodies that are none. Every text is compared with what `dlm-run`
writes for the same prompt and seed. The server's memory, threads and file descriptors are read
before and after each quarter, and it must end with status 0. Then one client asks alone: HTTP's
share is what is left of a request's time without the queue and the text's own stages, and, which
holds on a busy machine, too, what its CPU time has beyond a pipeline's for the same texts.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ..jetson.profile.serving import Server, stream
from ..runtime.bundle.bundle import default_bundle_path
from ..runtime.cli.common import DlmCommand
from ..runtime.errors import DlmError
from ..runtime.pipeline import Pipeline
from .report import out_option, print_table, record, write_json
from .serve_beside_llama_cpp import cpu_seconds

TOKENS = 12
SEEDS = (0, 1, 2, 3)
PROMPTS = ("Once upon a time", "The dog", "Lily", "Tom and his mom", "One day, a bird", "")
BAD: tuple[tuple[bytes, int], ...] = (
    (b"{", 400),
    (b'{"prompt": "\xff"}', 400),
    (b"[1, 2]", 400),
    (b'{"prompt": 7}', 400),
    (b'{"model": "none", "prompt": "x"}', 404),
    (b'{"prompt": "x", "n": 1000000}', 400),
    (b'{"prompt": "x", "seed": -1}', 400),
    (b'{"prompt": "x", "temprature": 1}', 400),
    (b'{"prompt": "x", "stream": true, "temperature": -1}', 400),
    (b'{"prompt": "' + b"word " * 2000 + b'"}', 400),
    (b" " * 2_000_000, 413),
)
HEADERS = {"Content-Type": "application/json"}


def expected_texts(bundle: Path, threads: int | None) -> dict[tuple[str, int], str]:
    """Gives what `dlm-run` writes, by prompt and seed."""
    found = {}
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("".join(f"{prompt}\n" for prompt in PROMPTS))
        file.flush()
        for seed in SEEDS:
            command = [sys.executable, "-m", "dlm_edge.runtime.cli.run", str(bundle), "--json"]
            command += ["--prompt-file", file.name, "--seed", str(seed), "-n", str(TOKENS)]
            command += ["--threads", str(threads)] if threads else []
            lines = subprocess.check_output(command, text=True).splitlines()
            for prompt, line in zip(PROMPTS, lines, strict=True):
                found[prompt, seed] = json.loads(line)["text"]
    return found


def ask(server: Server, rng: random.Random, texts: Mapping[tuple[str, int], str]) -> str:
    """Makes one request of a random kind; gives what came of it."""
    connection = server.connect()
    try:
        kind = rng.random()
        if kind < 0.15:
            body, status = rng.choice(BAD)
            try:
                connection.request("POST", "/v1/completions", body, HEADERS)
                answer = connection.getresponse()
                found = json.loads(answer.read())["error"]["message"]
            except (BrokenPipeError, ConnectionResetError):
                return "refused while it was sent" if status == 413 else "WRONG: cut off"
            right = answer.status == status and found and "\n" not in found
            return "bad body refused" if right else f"WRONG: {answer.status} for a bad body"
        prompt, seed = rng.choice(PROMPTS), rng.choice(SEEDS)
        stream = kind < 0.75
        asked = {"prompt": prompt, "seed": seed, "max_tokens": TOKENS, "stream": stream}
        asked |= {"provisional": stream and rng.random() < 0.5}
        connection.request("POST", "/v1/completions", json.dumps(asked), HEADERS)
        if kind < 0.35:
            time.sleep(rng.random() * 0.3)
            if stream and rng.random() < 0.5:
                connection.getresponse().read(rng.randrange(1, 2000))
            return "client went away"
        answer = connection.getresponse()
        if answer.status == 503:
            return "told to come back" if answer.headers["retry-after"] else "WRONG: bare 503"
        content = answer.read().decode()
        if stream:
            *events, done, rest = content.split("\n\n")
            assert (done, rest) == ("data: [DONE]", "")
            choices = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
            text = "".join(choice["text"] for choice in choices)
        else:
            text = json.loads(content)["choices"][0]["text"]
        return "right" if text == texts[prompt, seed] else f"WRONG: {text!r}"
    finally:
        connection.close()


def load(
    server: Server, texts: Mapping[tuple[str, int], str], *, requests: int, clients: int, seed: int
) -> tuple[Counter[str], float]:
    """Has clients ask at the same time; gives outcomes and wall seconds."""
    outcomes: Counter[str] = Counter()
    lock = threading.Lock()

    def client(number: int) -> None:
        rng = random.Random(seed * 1000 + number)
        for _ in range(requests // clients):
            try:
                outcome = ask(server, rng, texts)
            except Exception as error:
                outcome = f"WRONG: {error!r}"
            with lock:
                outcomes[outcome] += 1

    begin = time.perf_counter()
    workers = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return outcomes, time.perf_counter() - begin


def measure_http(server: Server, bundle: Path, threads: int | None) -> dict[str, float]:
    """Gives HTTP's share of CPU time and of wall time, for streams to one client.

    CPU time is compared with that of a pipeline that writes the same texts, in turn.
    """
    served = own = 0.0
    shares = []
    with Pipeline.load(bundle, threads=threads) as pipeline:
        for seed in range(17):
            before = cpu_seconds(server.pid)
            text = stream(server.port, {"prompt": "The dog", "max_tokens": 64, "seed": seed})
            after, begin = cpu_seconds(server.pid), time.process_time()
            pipeline("The dog", max_tokens=64, seed=seed)
            if seed:  # the first warms up
                served += after - before
                own += time.process_time() - begin
                shares.append(text.http_share)
    return {"cpu": round(1 - own / served, 4), "wall": round(statistics.median(shares), 4)}


@click.command("serve_load", cls=DlmCommand)
@click.option("--bundle", type=click.Path(path_type=Path), help="[default: the shipped model]")
@click.option("--requests", type=click.IntRange(min=1), default=1000)
@click.option("--clients", type=click.IntRange(min=1), default=8)
@click.option("--seed", default=0, help="Of what clients do.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of the model.")
@out_option("serve_load", help="JSON with every figure.")
def main(
    bundle: Path | None, requests: int, clients: int, seed: int, threads: int | None, out: Path
) -> None:
    """Asks a server from several clients; fails if an answer is wrong or the server leaks."""
    bundle = bundle or default_bundle_path()
    texts = expected_texts(bundle, threads)
    with Server(bundle, threads=threads) as server:
        load(server, texts, requests=requests // 10, clients=clients, seed=seed + 1)  # warms up
        server.settle()
        before = server.held()
        outcomes: Counter[str] = Counter()
        seconds, between = 0.0, []
        for part in range(4):
            some, spent = load(
                server, texts, requests=requests // 4, clients=clients, seed=seed + 2 + part
            )
            outcomes, seconds = outcomes + some, seconds + spent
            server.settle()
            between.append(server.held())
        limit = time.monotonic() + 10  # idle connections are closed after 5 s
        while (after := server.held())["files"] > before["files"] and time.monotonic() < limit:
            time.sleep(0.2)
        http_share = measure_http(server, bundle, threads)
        status = server.end()
    found: dict[str, Any] = {
        "requests": requests,
        "clients": clients,
        "tokens_per_text": TOKENS,
        "seconds": round(seconds, 1),
        "outcomes": dict(outcomes.most_common()),
        "before": before,
        "after_each_quarter": between,
        "after": after,
        "http_share": http_share,
        "exit_status": status,
    }
    print_table(
        (("outcome", "outcome"), ("requests", "count")),
        [{"outcome": outcome, "count": count} for outcome, count in outcomes.most_common()],
    )
    for when, held in (("before", before), *(("then", held) for held in between)):
        click.echo(f"{when} {held}")
    click.echo(f"HTTP's share {http_share}")
    write_json(out, record() | found)
    wrong = [outcome for outcome in outcomes if outcome.startswith("WRONG")]
    leaks = after["threads"] > before["threads"] or after["files"] > before["files"]
    if wrong or leaks or status:
        raise DlmError(f"wrong answers {wrong}, leaks {leaks}, exit status {status}")


if __name__ == "__main__":
    main()
