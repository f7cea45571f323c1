"""Kernel images compiled on this machine, kept in the user's cache directory.

An image is found again by the hash of its sources, the CUDA version that compiled it and the
compute capability that it is for. It is written beside and renamed, so that two processes that
compile at once both end with a whole one. Knows no compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from ..cache import cache_root, write_beside

Compile = Callable[[bytes, Mapping[str, bytes]], bytes]
"""(source, its headers by name) to an image."""

_DIGEST_BYTES = 32


def headers_of(source: Path) -> dict[str, bytes]:
    """Reads the headers that a `.cu` file may include: all `.cuh` files beside it."""
    return {path.name: path.read_bytes() for path in sorted(source.parent.glob("*.cuh"))}


def source_hash(source: Path) -> str:
    """Gives the SHA-256 of a `.cu` file and of every header beside it, names included."""
    digest = sha256()
    for name, text in {source.name: source.read_bytes(), **headers_of(source)}.items():
        digest.update(f"{name}\0{len(text)}\0".encode() + text)
    return digest.hexdigest()


def compile_cached(
    source: Path, cuda_version: str, capability: tuple[int, int], compile_: Compile
) -> bytes:
    """Gives a source's image, compiled now unless an earlier one is whole.

    Args:
        source: The `.cu` file.
        cuda_version: Of the compiler, such as `12.6`.
        capability: Major and minor compute capability.
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
