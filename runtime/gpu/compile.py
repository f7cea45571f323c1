"""Kernel sources to images, by NVRTC, on the machine that will run them. Needs no GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DeviceError
from .bindings import REMEDY, brief
from .kernel_cache import compile_cached


def _nvrtc() -> tuple[Any, str]:
    try:
        from cuda.bindings import nvrtc  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

        _, major, minor = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        raise DeviceError(
            f"compiling kernels needs cuda-bindings and the CUDA toolkit's NVRTC: "
            f"{brief(error)}; {REMEDY}"
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
        source: The file; see `headers_of` for where its headers are.
        capability: Major and minor compute capability.
        begins: Called if it has to be compiled, before that.

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
