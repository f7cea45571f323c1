"""Kernel images compiled on this machine, kept in the user's cache directory.

An image is found again by the hash of its sources, the CUDA version that compiled it and the
compute capability that it is for. It is written beside and renamed, so that two processes that
compile at once both end with a whole one. Knows no compiler.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from ..cache import cache_root, write_beside
from ..errors import DeviceError

Compile = Callable[[bytes, Mapping[str, bytes]], bytes]
"""(source, its headers by name) to an image."""

_DIGEST_BYTES = 32
_INCLUDE = re.compile(r'^#include "(.+)"$', re.MULTILINE)
OPS = Path(__file__).resolve().parents[1] / "ops"
"""The primitives' folder, which their `#include` paths start from."""


def headers_of(source: Path) -> dict[str, bytes]:
    """Reads the headers that a `.cu` file includes, by the names that it includes them by.

    A name is a path from the folder that holds the source's own, or from the source's own.

    Raises:
        DeviceError: A header is missing.
    """
    found: dict[str, bytes] = {}
    waiting = [source.read_bytes()]
    while waiting:
        for name in _INCLUDE.findall(waiting.pop().decode()):
            if name not in found:
                places = (folder / name for folder in include_folders(source))
                path = next((place for place in places if place.is_file()), None)
                if path is None:
                    folders = ", ".join(map(str, include_folders(source)))
                    raise DeviceError(
                        f"kernel source {source.name} includes {name}, which is in none of "
                        f"{folders}; install dlm-edge again"
                    )
                found[name] = path.read_bytes()
                waiting.append(found[name])
    return dict(sorted(found.items()))


def include_folders(source: Path) -> tuple[Path, ...]:
    """Gives the folders that a source's headers are looked for in: its own, the ops' last."""
    return source.parent, source.parent.parent, OPS


def source_hash(source: Path) -> str:
    """Gives the SHA-256 of a `.cu` file and of every header that it includes, names too."""
    digest = sha256()
    for name, text in {source.name: source.read_bytes(), **headers_of(source)}.items():
        digest.update(f"{name}\0{len(text)}\0".encode() + text)
    return digest.hexdigest()


def compile_cached(
    source: Path, cuda_version: str, capability: tuple[int, int], compile_: Compile
) -> bytes:
    """Gives a source's image, compiled now unless an earlier one is whole.

    Args:
        cuda_version: Of the compiler, such as `12.6`.
        compile_: Called when there is no image.
    """
    folder = cache_root() / "kernels"
    with suppress(OSError):  # found out below, where it is a matter of speed only
        folder.mkdir(mode=0o700, exist_ok=True)
    major, minor = capability
    name = f"{source.stem}-{source_hash(source)}-cuda{cuda_version}-sm_{major}{minor}.cubin"
    path = folder / name
    if path.is_file():
        kept = path.read_bytes()
        digest, image = kept[:_DIGEST_BYTES], kept[_DIGEST_BYTES:]
        if sha256(image).digest() == digest:
            return image
    image = compile_(source.read_bytes(), headers_of(source))
    with suppress(OSError):  # a full or closed cache: the next start compiles again
        write_beside(path, sha256(image).digest() + image)
    return image
