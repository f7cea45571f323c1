"""A server of bundles in a thread of this process."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from contextlib import contextmanager

from dlm_edge.runtime.serve.http import Access
from dlm_edge.runtime.serve.server import bound_socket, serve


class Served:
    """Where a server listens, what it noted, and plain HTTP to ask it."""

    def __init__(self, port):
        self.port, self.notes = port, []
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, path, body=None, *, method=None, raw=None, timeout=60, **headers):
        """Gives status, headers and the object, or the bytes of what is no JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        if data is not None:
            headers.setdefault("content_type", "application/json")
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method or ("POST" if data is not None else "GET"), path, data, names)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        kind = answer.headers.get("content-type", "")
        found = json.loads(content) if kind == "application/json" else content
        return answer.status, answer.headers, found

    def complete(self, **body):
        status, _, found = self.ask("/v1/completions", body)
        assert status == 200, found
        return found

    def events(self, path="/v1/completions", **body):
        status, headers, content = self.ask(path, {**body, "stream": True})
        assert (status, headers["content-type"]) == (200, "text/event-stream"), content
        lines = content.decode().split("\n\n")
        assert lines.pop() == ""
        return [line.removeprefix("data: ") for line in lines]


@contextmanager
def served(*paths, access=None, **options):
    options = {"max_waiting": 64, "deadline": 60.0, "grace": 0.0, "threads": 1, **options}
    bound = bound_socket("127.0.0.1", 0)
    server = Served(bound.getsockname()[1])
    ready, failed = threading.Event(), []
    running = {}

    async def main():
        running["loop"], running["task"] = asyncio.get_running_loop(), asyncio.current_task()
        await serve(
            bound, list(paths), access or Access(), note=server.notes.append, ready=ready.set,
            **options,
        )  # fmt: skip

    def run():
        try:
            asyncio.run(main())
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            failed.append(error)
        ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        if failed:
            raise failed[0]
        yield server
    finally:
        if thread.is_alive():
            running["loop"].call_soon_threadsafe(running["task"].cancel)
        thread.join()
        bound.close()
