"""A bundle under `dlm-serve`: what 1, 2, 4 and 8 clients on loopback get, and what it holds.

Every client streams texts one after the other. The texts of one client alone are what those of
more are compared with: a text does not depend on what else runs. The server is a process of its
own, so that its memory is.
"""

from __future__ import annotations

import http.client
import json
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...runtime.errors import EngineError

CLIENTS = (1, 2, 4, 8)
_HEADERS = {"Content-Type": "application/json"}


class Server:
    """A `dlm-serve` process over one bundle; use as a context manager."""

    def __init__(self, bundle: Path, *, engine: str = "auto", threads: int | None = None) -> None:
        """Starts it and waits until it accepts requests.

        Raises:
            EngineError: It ended instead; the message has its last line.
        """
        command = [sys.executable, "-m", "dlm_edge.runtime.cli.serve", str(bundle), "--json"]
        command += ["--port", "0", "--engine", engine]
        command += ["--threads", str(threads)] if threads else []
        begin = time.perf_counter()
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        line = self._process.stdout.readline()
        self.start_seconds = time.perf_counter() - begin
        if not line:
            said = self._process.communicate()[1].strip().splitlines()
            raise EngineError(f"dlm-serve did not start: {said[-1] if said else 'it said nothing'}")
        self.pid = self._process.pid
        self.port = int(json.loads(line)["url"].rpartition(":")[2])
        # Nobody reads what it notes; a full pipe would stop it.
        threading.Thread(target=self._process.stderr.read, daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def connect(self) -> http.client.HTTPConnection:
        """Opens a connection."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)

    def held(self) -> dict[str, float]:
        """Gives what the process holds: memory, threads, file descriptors."""
        place = Path(f"/proc/{self.pid}")
        rows = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
        return {
            "rss_mib": round(int(rows["VmRSS"].split()[0]) / 1024, 1),
            "peak_rss_mib": round(int(rows["VmHWM"].split()[0]) / 1024, 1),
            "threads": int(rows["Threads"]),
            "files": len(list((place / "fd").iterdir())),
        }

    def settle(self) -> None:
        """Waits until no text is left."""
        while True:
            connection = self.connect()
            connection.request("GET", "/health")
            state = json.loads(connection.getresponse().read())
            connection.close()
            if not state["running"] and not state["waiting"]:
                return
            time.sleep(0.05)

    def end(self) -> int:
        """Asks the server to end; gives its exit status."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=120)


@dataclass(slots=True)
class Streamed:
    """One text as a client got it."""

    text: str = ""
    first: float = math.nan
    """Seconds to the first text."""
    seconds: float = 0.0
    num_pieces: int = 0
    """Events that brought text."""
    decoding: Mapping[str, Any] = field(default_factory=dict)
    """The server's own figures, if it is `dlm-serve`."""

    @property
    def tokens(self) -> int:
        """New tokens; of a server that does not say, pieces of text."""
        return self.decoding.get("tokens", self.num_pieces)

    @property
    def http_share(self) -> float:
        """Share of the time that is neither the queue's nor the text's own, by `decoding`."""
        spent = self.decoding["seconds"]
        return 1 - (spent["total"] + spent["queue"]) / self.seconds


def stream(port: int, body: Mapping[str, Any]) -> Streamed:
    """Asks for a text and reads it as it comes; raises EngineError for any other answer."""
    found, begin = Streamed(), time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        data = json.dumps({**body, "stream": True})
        connection.request("POST", "/v1/completions", data, _HEADERS)
        answer = connection.getresponse()
        if answer.status != 200:
            raise EngineError(f"the server answered {answer.status}: {answer.read()[:200]!r}")
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line.removeprefix(b"data: "))
            if "error" in event:
                raise EngineError(f"the server ended a stream: {event['error']['message']}")
            (choice,) = event["choices"]
            if choice["text"] and not found.text:
                found.first = time.perf_counter() - begin
            found.text += choice["text"]
            found.num_pieces += bool(choice["text"])
            found.decoding = choice.get("decoding", found.decoding)
    finally:
        connection.close()
    found.seconds = time.perf_counter() - begin
    return found


def measure_serving(
    bundle: Path,
    prompts: Sequence[str],
    *,
    runs: int,
    seed: int,
    max_tokens: int,
    settings: Mapping[str, Any],
    engine: str = "auto",
    threads: int | None = None,
    clients: Sequence[int] = CLIENTS,
    progress: Callable[[str, int, int], None] = lambda what, done, planned: None,
) -> dict[str, Any]:
    """Measures a bundle under more and more clients.

    Args:
        bundle: What is served.
        prompts: Each client asks for all of them.
        runs: Texts per prompt and client, of seeds that follow each other.
        seed: Of the first.
        max_tokens: Of a text.
        settings: Decoding options that requests give.
        engine: As `Pipeline.load`'s.
        threads: As `Pipeline.load`'s.
        clients: How many at a time; the first texts are what all others are compared with.
        progress: Gets what is measured, and how many of its texts are done.

    Returns:
        Memory and start time of the server, and for each number of clients its figures.

    Raises:
        EngineError: The server does not start, or an answer is no text.
    """
    bodies = [
        {"prompt": prompt, "seed": seed + run, "max_tokens": max_tokens, **settings}
        for run in range(runs)
        for prompt in prompts
    ]
    with Server(bundle, engine=engine, threads=threads) as server:
        idle = server.held()
        for body in bodies[: len(prompts)]:
            stream(server.port, body)  # warms up
        expected: list[str] = []
        levels = []
        for count in clients:
            texts, seconds = level(server.port, bodies, count, progress)
            expected = expected or [text.text for text in texts[0]]
            flat = [text for own in texts for text in own]
            differ = sum(t.text != e for own in texts for t, e in zip(own, expected, strict=True))
            share = quantile(sorted(text.http_share for text in flat), 0.5)
            levels.append(
                {
                    "clients": count,
                    "texts": len(flat),
                    "differ": differ,
                    **figures(flat, seconds),
                    "http_share": round(share, 4),
                }
            )
        held = server.held()
        status = server.end()
    return {
        "start_seconds": round(server.start_seconds, 3),
        "idle": idle,
        "after": held,
        "exit_status": status,
        "levels": levels,
    }


def level(
    port: int,
    bodies: Sequence[Mapping[str, Any]],
    count: int,
    progress: Callable[[str, int, int], None] = lambda what, done, planned: None,
) -> tuple[list[list[Streamed]], float]:
    """Has so many clients ask at once; gives each one's texts, and the wall seconds."""
    texts: list[list[Streamed]] = [[] for _ in range(count)]
    errors: list[Exception] = []

    def client(own: list[Streamed]) -> None:
        try:
            for body in bodies:
                own.append(stream(port, body))
                progress(f"{count} clients", sum(map(len, texts)), count * len(bodies))
        except Exception as error:
            errors.append(error)

    begin = time.perf_counter()
    threads = [threading.Thread(target=client, args=(own,)) for own in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return texts, time.perf_counter() - begin


def figures(texts: Sequence[Streamed], seconds: float) -> dict[str, float]:
    """Gives throughput and times of texts that took so many seconds together."""
    tokens = sum(text.tokens for text in texts)
    first = sorted(text.first for text in texts if text.text)
    each = sorted(text.seconds / max(1, text.tokens) for text in texts)
    return {
        "tokens": tokens,
        "tokens_per_s": round(tokens / seconds, 2),
        "first_ms_p50": _milliseconds(first, 0.5),
        "first_ms_p99": _milliseconds(first, 0.99),
        "token_ms_p50": _milliseconds(each, 0.5),
        "token_ms_p99": _milliseconds(each, 0.99),
    }


def _milliseconds(ascending: Sequence[float], share: float) -> float:
    return round(1e3 * quantile(ascending, share), 2) if ascending else math.nan


def quantile(ascending: Sequence[float], share: float) -> float:
    """Gives the smallest value that so large a share of all values does not exceed."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]
