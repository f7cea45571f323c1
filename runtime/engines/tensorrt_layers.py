"""Times single layers of a TensorRT engine, by TensorRT's own profiler.

A context with a profiler waits for every run and reports each of its layers, so runs are slower and
must not be captured meanwhile. Layers bear the names that TensorRT gave to what it fused. Like
`tensorrt.py`, this has not run on a GPU.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from .base import LayerTime, LayerTimes


def layer_profiler(trt: Any) -> Any:
    """Returns an IProfiler with `heard`: milliseconds of every call by layer, in order."""

    class Layers(trt.IProfiler):
        """Told of every layer after every run."""

        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.heard: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            """One layer ran."""
            self.heard.setdefault(layer_name, []).append(ms)

    return Layers()


def layer_times(heard: dict[str, list[float]], scratch_bytes: int) -> LayerTimes:
    """Returns what a profiler recorded, the longest first; `scratch_bytes` is what runs share."""
    layers = [
        LayerTime(
            name=name,
            kind=_kind(name),
            seconds=median(milliseconds) / 1000,
            calls=len(milliseconds),
            bytes=None,
        )
        for name, milliseconds in heard.items()
    ]
    layers.sort(key=lambda layer: -layer.seconds * layer.calls)
    return LayerTimes(layers=tuple(layers), allocator={"scratch": scratch_bytes})


def _kind(name: str) -> str:
    """Returns a word for what a layer does: the first of TensorRT's names for fused regions."""
    if "ForeignNode" in name or "myl" in name:
        return "fused"
    return "reformat" if name.startswith("Reformatting") else "layer"
