"""A server on this machine that speaks the part of the hub's protocol that its client uses."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


class Hub(ThreadingHTTPServer):
    """Repositories by name, each a folder; counts what was asked for."""

    def __init__(self, repositories: dict[str, Path], *, cut: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.cut = repositories, cut
        self.requests: list[tuple[str, str, str]] = []
        """(method, file, range) of each request."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        path = unquote(self.path.split("?")[0]).strip("/")
        repository, _, rest = path.partition("/resolve/")
        revision, _, name = rest.partition("/")
        if rest.startswith("refs/pr/"):
            revision, name = rest[: len("refs/pr/1")], rest[len("refs/pr/1/") :]
        folder = self.server.repositories.get(repository)
        asked = self.headers.get("Range", "")
        self.server.requests.append((self.command, name, asked))
        if folder is None:
            self._refuse("RepoNotFound")
        elif revision not in ("main", "refs/pr/1", COMMIT):
            self._refuse("RevisionNotFound")
        elif not (folder / name).is_file():
            self._refuse("EntryNotFound")
        else:
            self._send(folder / name, asked, body=body)

    def _refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, file: Path, asked: str, *, body: bool) -> None:
        data = file.read_bytes()
        begin = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        if not body:
            return
        part, cut = data[begin:], self.server.cut
        if cut is not None and file.suffix == ".safetensors" and len(part) > cut:
            self.server.cut = None  # once: the connection breaks in the middle
            part = part[:cut]
            self.close_connection = True
        self.wfile.write(part)


@contextmanager
def hub_of(repositories: dict[str, Path], *, cut: int | None = None) -> Iterator[Hub]:
    """Serves repositories while it is open."""
    server = Hub(repositories, cut=cut)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
