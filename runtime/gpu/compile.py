"""Kernel sources to images, by NVRTC, on the machine that will run them. Needs no GPU."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..cache import cache_root, write_beside
from ..errors import DeviceError, brief
from .bindings import REMEDY


def _nvrtc() -> tuple[Any, str]:
    try:
        from cuda.bindings import nvrtc  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

        _, major, minor = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        raise DeviceError(
            f"compiling kernels needs cuda-bindings and the CUDA toolkit's NVRTC: "
            f"{brief(error, 120)}; {REMEDY}"
        ) from error
    return nvrtc, f"{major}.{minor}"


def checked(result: Sequence[Any], what: str) -> Any:
    """Gives the one value of a cuda-bindings result; DeviceError unless the call succeeded."""
    if int(result[0]):
        raise DeviceError(f"{what} failed with {result[0].name}; see the driver's log, dmesg")
    return result[1] if len(result) > 1 else None


def compile_kernels(
    source: Path, capability: tuple[int, int], begins: Callable[[], None] = lambda: None
) -> bytes:
    """Compiles a `.cu` file to a cubin, or finds it compiled; needs no GPU.

    Args:
        capability: Major and minor compute capability.

    Raises:
        DeviceError: NVRTC is missing, or refuses the source.
    """
    nvrtc, version = _nvrtc()

    def compile_(text: bytes, headers: Mapping[str, bytes]) -> bytes:
        begins()
        names = [name.encode() for name in headers]
        program = checked(
            nvrtc.nvrtcCreateProgram(
                text, source.name.encode(), len(names), list(headers.values()), names
            ),
            f"reading {source.name}",
        )
        options = [b"--gpu-architecture=sm_%d%d" % capability, b"--std=c++17"]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if int(status):
            raise DeviceError(f"NVRTC cannot compile {source.name}: {_log(nvrtc, program)}")
        image = bytes(checked(nvrtc.nvrtcGetCUBINSize(program), "measuring an image"))
        checked(nvrtc.nvrtcGetCUBIN(program, image), "reading an image")
        checked(nvrtc.nvrtcDestroyProgram(program), "releasing NVRTC's program")
        return image

    return compile_cached(source, version, capability, compile_)


def _log(nvrtc: Any, program: Any) -> str:
    """Gives the first line that NVRTC complained in."""
    text = bytes(checked(nvrtc.nvrtcGetProgramLogSize(program), "measuring NVRTC's log"))
    checked(nvrtc.nvrtcGetProgramLog(program, text), "reading NVRTC's log")
    return text.decode(errors="replace").strip(" \n\0").split("\n")[0]


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
    """Gives a source's image, compiled now unless an earlier one is whole."""
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
