"""Kernel times that a build of TensorRT measures, kept for the next one.

TensorRT hands out only the times of a set that was attached before the build: where none is, the
builder keeps its own to itself and drops it (see `get_timing_cache` and `set_timing_cache` of
https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/infer/Core/BuilderConfig.html).
"""

from __future__ import annotations

from typing import Any


def attach_timings(config: Any, known: bytes) -> None:
    """Gives a builder config the times to begin with, else an empty set for what is measured.

    Times of another GPU or version, which TensorRT does not read or refuses, count as none.

    Args:
        known: Of an earlier build; may be empty.
    """
    for data in (known, b"") if known else (b"",):
        times = config.create_timing_cache(data)
        if times is not None and config.set_timing_cache(times, False):
            return


def measured_timings(config: Any) -> bytes:
    """Returns the times after a build; empty if TensorRT gives none."""
    times = config.get_timing_cache()
    if times is None:
        return b""
    return bytes(memoryview(times.serialize()))
