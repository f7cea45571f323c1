"""Backends: the one place that makes a graph of a bundle executable."""

from __future__ import annotations

from collections.abc import Callable

from ..bundle.bundle import Bundle
from ..errors import ConfigError, DeviceError, EngineError
from .base import Engine, EngineSet
from .tensorrt_build import BuildSettings

ENGINE_NAMES = ("auto", "onnxruntime", "tensorrt")
FELL_BACK = "auto: ONNX Runtime, since TensorRT fails"
"""Begins the reason of a set that was taken because a TensorRT that is here did not do."""

__all__ = ["ENGINE_NAMES", "BuildSettings", "Engine", "EngineSet", "open_engines"]


def open_engines(
    bundle: Bundle,
    engine: str = "auto",
    threads: int | None = None,
    *,
    build: BuildSettings | None = None,
    note: Callable[[str], None] = lambda line: None,
    report: Callable[[float, str], None] = lambda fraction, phase: None,
) -> EngineSet:
    """Makes a bundle's graphs executable.

    Args:
        engine: One of ENGINE_NAMES; the set's `reason` says what `auto` chose and why.
        note: Gets a line when `auto` does without a TensorRT that is there or when int8 graphs run
            on another backend than they were made for, and what TensorRT's backend has to say.

    Raises:
        ConfigError: Unknown engine or impossible number of threads.
        EngineError: The backend is not installed, or cannot run the bundle.
        DeviceError: The GPU asked for is not there, or has not the memory.
    """
    if threads is not None and not 1 <= threads <= 1024:
        raise ConfigError(f"threads must be from 1 to 1024, found {threads}")
    match engine:
        case "auto":
            found = _tensorrt_if_there(bundle, build, note, report)
            if not isinstance(found, str):
                return found
            reason = found
        case "onnxruntime":
            reason = "asked for"
        case "tensorrt":
            from .tensorrt_open import open_tensorrt

            return open_tensorrt(
                bundle, reason="asked for", settings=build, note=note, report=report
            )
        case _:
            raise ConfigError(f"engine must be one of {', '.join(ENGINE_NAMES)}, found {engine!r}")
    from .onnxruntime import OnnxRuntimeEngines, is_foreign_int8

    if is_foreign_int8(bundle.manifest):
        line = (
            f"the int8 graphs were made for {bundle.manifest.target}: ONNX Runtime computes them "
            "in floating point on the rounded values"
        )
        note(line)
        reason += f"; {line}"
    return OnnxRuntimeEngines(bundle, threads=threads, reason=reason)


def _tensorrt_if_there(
    bundle: Bundle,
    build: BuildSettings | None,
    note: Callable[[str], None],
    report: Callable[[float, str], None],
) -> EngineSet | str:
    """Returns the TensorRT backend, or why it is not taken."""
    from .tensorrt_open import at_hand, open_tensorrt
    from .tensorrt_plans import made_for_cpus

    try:
        trt, gpu = at_hand()
    except (EngineError, DeviceError) as error:
        return f"auto: ONNX Runtime, since {error}"
    reason = made_for_cpus(bundle.manifest)
    if reason is not None:
        note(f"--engine auto takes ONNX Runtime, though TensorRT is here: {reason}")
        return f"auto: ONNX Runtime, since {reason}"
    try:
        reason = f"auto: TensorRT {trt.__version__} and {gpu.name} are here"
        return open_tensorrt(bundle, reason=reason, settings=build, note=note, report=report)
    except (EngineError, DeviceError) as error:
        note(f"--engine auto takes ONNX Runtime, since TensorRT is here but fails: {error}")
        return f"{FELL_BACK}: {error}"
