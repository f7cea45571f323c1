"""`dlm-serve`: a page and an OpenAI-compatible server over one or several bundles."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import click

from ..errors import ConfigError, DataError
from ..models.shelf import named_bundle
from .common import (
    ENGINE,
    THREADS,
    DlmCommand,
    Section,
    common_options,
    grouped,
    note,
    print_json,
)

_NAME = "dlm-serve"


@click.command(_NAME, cls=DlmCommand)
@click.argument("bundles", nargs=-1, metavar="[MODEL.dlm]...", type=click.Path(path_type=Path))
@grouped(
    Section("Address"),
    click.option("--host", "--server-name", default="127.0.0.1", help="Where to listen."),
    click.option("--port", type=click.IntRange(0, 65535), default=8080, help="0: any free one."),
)
@grouped(
    Section("Who may ask"),
    click.option("--api-key", multiple=True, metavar="KEY", help="Wanted of every request."),
    click.option(
        "--api-key-file",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Keys, one per line: others cannot read them in the list of processes.",
    ),
    click.option(
        "--allow-host",
        multiple=True,
        metavar="NAME",
        help="A name in URLs of this server, beside its addresses, localhost and its own name.",
    ),
    click.option(
        "--cors", multiple=True, metavar="ORIGIN", help="Whose pages may ask; * is anyone's."
    ),
)
@grouped(
    Section("Limits"),
    click.option(
        "--max-waiting", type=click.IntRange(min=1), default=64, help="Texts in the queue."
    ),
    click.option(
        "--deadline",
        type=click.FloatRange(min=0, min_open=True),
        default=300.0,
        help="Seconds that a request may take, its time in the queue included.",
    ),
    click.option(
        "--grace",
        type=click.FloatRange(min=0),
        default=10.0,
        help="Seconds that requests have to end when the server is stopped.",
    ),
)
@grouped(
    Section("Memory"),
    click.option(
        "--conversation-memory",
        type=click.IntRange(min=0),
        default=256,
        metavar="MIB",
        help="Of each open bundle, for the KV caches of conversations that wait for their next "
        "turn; 0: only the last text's stays.",
    ),
)
@grouped(
    Section("Texts"),
    click.option(
        "--seed",
        type=click.IntRange(0, 2**64 - 1),
        help="Of requests that give none.  [default: one is drawn for each]",
    ),
)
@grouped(Section("Engine"), ENGINE, THREADS)
@common_options
def main(
    bundles: tuple[Path, ...], host: str, port: int, as_json: bool, verbose: int, **given: Any
) -> None:
    """Serves bundles over HTTP: a page at /, OpenAI's API at /v1.

    The first bundle is opened at once, others when they are first asked for; without one, the small
    model that ships with the package is served. A bundle's name is that of its file without .dlm.
    SIGTERM and Ctrl-C end it in an orderly way: what is being written may end, then it ends with
    status 0. With --json, the address and the models are one JSON object on stdout, once requests
    are accepted; -v logs every request.
    """
    from ..bundle.bundle import default_bundle_path
    from ..serve.http import Access
    from ..serve.server import bound_socket, serve

    _check(given)
    keys = (*given.pop("api_key"), *_read_keys(given.pop("api_key_file")))
    if "" in keys:
        raise ConfigError("--api-key must not be empty; leave it out to want no key")
    access = Access(
        keys=keys,
        hosts=tuple(name.lower() for name in given.pop("allow_host")),
        origins=tuple(origin.lower().rstrip("/") for origin in given.pop("cors")),
    )
    paths = [named_bundle(path) for path in bundles] or [default_bundle_path()]
    bound = bound_socket(host, port)
    url = _url(bound)
    if not keys and not _is_loopback(bound):
        note(_NAME, f"WARNING: {url} asks for no API key: whoever reaches it may use it")
        note(_NAME, "WARNING: name one with --api-key-file, or listen at 127.0.0.1")

    def ready() -> None:
        if as_json:
            print_json({"url": url, "models": [path.stem for path in paths]})
        else:
            note(_NAME, f"page and API at {url} (Ctrl-C ends)")

    with bound:
        asyncio.run(
            serve(
                bound,
                paths,
                access,
                note=lambda line: note(_NAME, line),
                ready=ready,
                log_requests=verbose > 0,
                **given,
            )
        )


def _check(given: Mapping[str, Any]) -> None:
    for name in ("deadline", "grace"):
        if not isfinite(given[name]):
            raise ConfigError(f"--{name} must be a number of seconds, found {given[name]}")
    for name in given["allow_host"]:
        if not re.fullmatch(r"[\w.-]+", name):
            raise ConfigError(f"--allow-host must be a name alone, found {name!r}; drop the rest")
    for origin in given["cors"]:
        if origin != "*" and not re.fullmatch(r"\w+://[^/]+/?", origin):
            raise ConfigError(
                f"--cors must be an origin such as https://example.org, or *, found {origin!r}"
            )


def _read_keys(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = path.read_text("utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read keys from {path}: {error}; write one per line") from error
    if not lines:
        raise DataError(f"{path} holds no key; write one per line")
    return lines


def _is_loopback(bound: socket.socket) -> bool:
    return ipaddress.ip_address(bound.getsockname()[0]).is_loopback


def _url(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


if __name__ == "__main__":
    main()
