"""HTTP over ASGI: bodies within limits, JSON, event streams, and who may ask.

Knows no model and no route.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ..errors import DlmError
from ..files import parse_json

MAX_BODY = 1 << 20
"""Bytes of a request's body."""
BODY_SECONDS = 20.0
"""What a client may take to send its body."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_NAMES = {429: "rate_limit_error", 401: "authentication_error", 403: "permission_error"}


class HttpError(DlmError):
    """What a request is answered with that gets no text: a status and a line."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Args are those of OpenAI's error objects, and headers to send along."""
        super().__init__(message)
        self.status, self.headers = status, tuple(headers)
        kind = "server_error" if status >= 500 else "invalid_request_error"
        kind = _NAMES.get(status, kind)
        self.json = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Reply:
    """One answer on its way to a client."""

    def __init__(self, send: Send, headers: Iterable[tuple[str, str]] = ()) -> None:
        self._send = send
        self._headers = [("x-content-type-options", "nosniff"), *headers]
        self.status = 0
        """Of what was sent; 0: nothing yet."""

    async def whole(
        self,
        content: bytes,
        kind: str,
        status: int = 200,
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Sends a whole answer of a media type."""
        await self._start(status, kind, [("content-length", str(len(content))), *headers])
        await self._send({"type": "http.response.body", "body": content})

    async def json(
        self, value: Any, status: int = 200, headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Sends an object."""
        await self.whole(to_json(value), "application/json", status, headers)

    async def event(self, value: Any) -> None:
        """Sends one event of a stream, whose first starts the answer; a string goes as it is."""
        if not self.status:
            await self._start(200, "text/event-stream", [("cache-control", "no-store")])
        data = value.encode() if isinstance(value, str) else to_json(value)
        body = b"data: " + data + b"\n\n"
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self) -> None:
        """Ends a stream."""
        await self._send({"type": "http.response.body", "body": b""})

    async def error(self, error: HttpError) -> None:
        """Sends an error: the answer, or the last event of a stream."""
        if self.status:
            await self.event(error.json)
            await self.end()
        else:
            await self.json(error.json, error.status, error.headers)

    async def _start(self, status: int, kind: str, headers: Iterable[tuple[str, str]]) -> None:
        self.status = status
        listed = [("content-type", kind), *headers, *self._headers]
        pairs = [(name.encode(), value.encode("latin-1")) for name, value in listed]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})


def to_json(value: Any) -> bytes:
    """Gives JSON in UTF-8; half a character out of a model becomes a question mark."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


async def read_object(scope: Scope, receive: Receive) -> dict[str, Any]:
    """Reads a body that must be a JSON object; raises HttpError."""
    if header(scope, "content-type").partition(";")[0].strip().lower() != "application/json":
        # A page of another origin can send other types without asking first.
        raise HttpError(415, "the body must be JSON: send Content-Type: application/json")
    try:
        body = await asyncio.wait_for(_read(receive), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise HttpError(408, f"the body took more than {BODY_SECONDS:g} s; send it again") from None
    try:
        found = parse_json(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise HttpError(400, f"the body is not UTF-8 at byte {error.start}") from None
    except ValueError as error:
        raise HttpError(400, f"the body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise HttpError(400, "the body must be a JSON object")
    return found


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionResetError("the client went away")
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            raise HttpError(413, f"the body has more than {MAX_BODY} bytes; send a shorter one")
        if not message.get("more_body"):
            return bytes(body)


def header(scope: Scope, name: str) -> str:
    """Gives a request's header; empty if it has none."""
    wanted = name.encode()
    return next((v.decode("latin-1") for k, v in scope["headers"] if k == wanted), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may ask."""

    keys: tuple[str, ...] = ()
    """One of them must come with a request; empty: none is wanted."""
    hosts: tuple[str, ...] = ()
    """Names that this server is called by, beside its addresses, localhost and its own name."""
    origins: tuple[str, ...] = ()
    """Origins of other servers whose pages may ask; `*`: of any."""
    _own: frozenset[str] = field(
        default_factory=lambda: frozenset(
            {"localhost", socket.gethostname().lower(), socket.gethostname().lower() + ".local"}
        )
    )

    def check_place(self, scope: Scope) -> None:
        """Refuses a page that another server made ask; raises HttpError.

        A name that an attacker points at this machine is neither an address nor one of ours, so
        that a page under it does not pass for one of this server (DNS rebinding).
        """
        host = header(scope, "host").lower()
        if not self._knows(host):
            raise HttpError(
                403, "this server is not known by that Host; start it with --allow-host NAME"
            )
        origin = header(scope, "origin").lower()
        if origin and urlsplit(origin).netloc != host and not self.shares_with(origin):
            raise HttpError(
                403, "pages of that Origin may not ask here; start it with --cors ORIGIN"
            )

    def shares_with(self, origin: str) -> bool:
        """Tells whether pages of another origin may read the answers."""
        return bool(origin) and ("*" in self.origins or origin.lower() in self.origins)

    def check_key(self, scope: Scope) -> None:
        """Wants a key, if there are any; raises HttpError."""
        kind, _, given = header(scope, "authorization").partition(" ")
        given = given.strip() if kind.lower() == "bearer" else ""
        # Every key is compared, and each in constant time.
        found = [hmac.compare_digest(given.encode(), key.encode()) for key in self.keys]
        if self.keys and not any(found):
            raise HttpError(
                401,
                "a valid API key is needed: send Authorization: Bearer KEY",
                code="invalid_api_key",
                headers=[("www-authenticate", "Bearer")],
            )

    def _knows(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._own or name in self.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
