"""Reads what ONNX Runtime's own profiler wrote: time per node, and its arena.

The profiler writes Chrome trace events; a node's event is named `<node>_kernel_time` and has its
operator and sizes among its arguments. The arena's figures are there in recent versions only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ..errors import EngineError
from ..files import parse_json
from .base import LayerTime, LayerTimes

_SUFFIX = "_kernel_time"
_SIZES = ("activation_size", "output_size")
_ALLOCATOR = {"mem_in_use_peak": "peak in use", "mem_arena_held": "held by the arena"}


def read_profiles(paths: Sequence[Path]) -> LayerTimes:
    """Adds up the profiles of all sessions; EngineError if one cannot be read."""
    calls: dict[str, list[float]] = {}
    kinds: dict[str, str] = {}
    sizes: dict[str, int] = {}
    allocator: dict[str, int] = {}
    for number, path in enumerate(paths):
        prefix = f"{number}:" if len(paths) > 1 else ""
        for event in _events(path):
            if event.get("cat") != "Node" or not event["name"].endswith(_SUFFIX):
                continue
            name = prefix + event["name"].removesuffix(_SUFFIX)
            facts = event.get("args", {})
            calls.setdefault(name, []).append(event["dur"] * 1e-6)
            kinds[name] = facts.get("op_name", "?")
            sizes[name] = max(sizes.get(name, 0), sum(int(facts.get(key, 0)) for key in _SIZES))
            for key, meaning in _ALLOCATOR.items():
                if key in facts:
                    allocator[meaning] = max(allocator.get(meaning, 0), int(facts[key]))
    layers = [
        LayerTime(
            name=name,
            kind=kinds[name],
            seconds=median(times),
            calls=len(times),
            bytes=sizes[name],
        )
        for name, times in calls.items()
    ]
    layers.sort(key=lambda layer: -layer.seconds * layer.calls)
    return LayerTimes(layers=tuple(layers), allocator=allocator)


def _events(path: Path) -> list[dict[str, Any]]:
    try:
        return parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise EngineError(
            f"ONNX Runtime's profile {path.name} cannot be read ({error}); measure without layers "
            "(--no-layers)"
        ) from error
