"""The server's life: a socket, uvicorn over it, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..asynchronous import Worker
from ..errors import ConfigError
from .app import App
from .http import Access
from .models import Models

if TYPE_CHECKING:
    from uvicorn import Server

HEAD_SECONDS = 10.0
"""What a client may take to send a request's head."""
MAX_HEAD = 1 << 15
"""Bytes of a request's head."""


def bound_socket(host: str, port: int) -> socket.socket:
    """Binds the address, so that a server that cannot have it ends before it loads anything.

    Raises:
        ConfigError: It is in use, not this machine's, or not to be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, address = found[0]
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
            bound.listen(128)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {host} port {port}: {error.strerror}; choose another --port or "
            "--host, or stop what listens there"
        ) from error
    return bound


async def serve(
    bound: socket.socket,
    paths: list[Path],
    access: Access,
    *,
    max_waiting: int,
    deadline: float,
    grace: float,
    seed: int | None = None,
    note: Callable[[str], None],
    ready: Callable[[], None] = lambda: None,
    log_requests: bool = False,
    conversation_memory: int = 0,
    **options: Any,
) -> None:
    """Serves until it is told to stop by SIGINT or SIGTERM.

    Requests that are being answered then have `grace` seconds to end by themselves; what is left
    ends with an error. A second signal ends them at once.

    Args:
        bound: Listens.
        paths: Bundles; the first is opened before the first request.
        access: Who may ask.
        max_waiting: Texts in the queue at most.
        deadline: Seconds that a request may take.
        grace: Seconds from the signal to the end of what is left.
        seed: Of requests that give none; None: one is drawn for each.
        note: Gets lines for the operator.
        ready: Called when the first bundle is open and requests are accepted.
        log_requests: Whether every request is a line of the log.
        conversation_memory: MiB for KV caches of conversations, of each open bundle.
        **options: Of `Pipeline.load`.
    """
    worker = Worker(max_waiting=max_waiting)
    try:
        size = conversation_memory << 20
        models = Models(paths, worker, note=note, conversation_bytes=size, **options)
        first = next(iter(models.all.values()))
        await models.open(first)
        models.release(first)
        app = App(models, access, deadline=deadline, seed=seed, note=note)
        server = _server(app, grace=grace, log_requests=log_requests)
        ready()
        await server.serve(sockets=[bound])
        await models.close()
    finally:
        await asyncio.to_thread(worker.close)


def _server(app: App, *, grace: float, log_requests: bool) -> Server:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        """Closes connections that do not send a request's head in time."""

        _head: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore
            """Expects a request's head from now on."""
            super().connection_made(transport)
            self._wait_for_head()

        def data_received(self, data: bytes) -> None:
            """Takes what came, and expects the next head where a request is whole."""
            super().data_received(data)
            self._wait_for_head()

        def _wait_for_head(self) -> None:
            waits = self.cycle is None or self.cycle.response_complete
            if waits and self._head is None:
                self._head = self.loop.call_later(HEAD_SECONDS, self._too_late)
            elif not waits and self._head is not None:
                self._head.cancel()
                self._head = None

        def connection_lost(self, exc: Exception | None) -> None:
            """Expects nothing any more."""
            if self._head is not None:
                self._head.cancel()
            super().connection_lost(exc)

        def _too_late(self) -> None:
            self._head = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    class OrderlyServer(uvicorn.Server):
        """Ends with status 0, and has the application end what is left `grace` seconds later."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Handles signals by `end`."""
            if threading.current_thread() is not threading.main_thread():
                yield  # signals are the main thread's
                return
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self.end, loop)
            try:
                yield
            finally:
                for number in (signal.SIGINT, signal.SIGTERM):
                    loop.remove_signal_handler(number)

        def end(self, loop: asyncio.AbstractEventLoop) -> None:
            """Takes no more requests; asked again, ends those that are left at once."""
            loop.call_later(0 if self.should_exit else grace, app.stop)
            self.should_exit = True

    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_level="info" if log_requests else "warning",
        access_log=log_requests,
        server_header=False,
        h11_max_incomplete_event_size=MAX_HEAD,
        timeout_graceful_shutdown=int(grace) + 10,
    )
    return OrderlyServer(config)
