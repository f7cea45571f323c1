"""Backends: the one place that makes a graph of a bundle executable."""

from __future__ import annotations

from ..bundle import Bundle
from ..errors import ConfigError, EngineError
from .base import Engine, EngineSet

ENGINE_NAMES = ("auto", "onnxruntime", "tensorrt")

__all__ = ["ENGINE_NAMES", "Engine", "EngineSet", "open_engines"]


def open_engines(bundle: Bundle, engine: str = "auto", threads: int | None = None) -> EngineSet:
    """Makes a bundle's graphs executable.

    Args:
        bundle: From `open_bundle`.
        engine: One of ENGINE_NAMES; what `auto` chose and why stands in the set's `reason`.
        threads: CPU threads that compute; None = every core this process may use, 8 at most.

    Raises:
        ConfigError: Unknown engine or impossible number of threads.
        EngineError: The backend is not installed, or not available in this version.
    """
    if threads is not None and not 1 <= threads <= 1024:
        raise ConfigError(f"threads must be from 1 to 1024, found {threads}")
    match engine:
        case "auto":
            reason = "auto: this version runs graphs on ONNX Runtime's CPU provider only"
        case "onnxruntime":
            reason = "asked for"
        case "tensorrt":
            from .tensorrt_build import import_tensorrt

            version = import_tensorrt().__version__
            raise EngineError(
                f"this version builds plans with TensorRT {version} (--build) but cannot run them "
                "yet: use --engine onnxruntime"
            )
        case _:
            raise ConfigError(f"engine must be one of {', '.join(ENGINE_NAMES)}, found {engine!r}")
    from .onnxruntime import OnnxRuntimeEngines

    return OnnxRuntimeEngines(bundle, threads=threads, reason=reason)
