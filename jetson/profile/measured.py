"""What sensors and layer clocks recorded, as a run's record has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import Any

from ...runtime.engines.base import LayerTimes
from ..graph.onnx_graph import Graph
from ..sensors.memory import DEVICE_USED, ENGINE_ACCOUNT, MALLOC
from ..sensors.power import total_rails
from ..sensors.series import Series
from .run_record import TextRun

Window = tuple[float, float]
"""Begin and end, `time.perf_counter()`."""


def run_energy(
    series: Series, runs: Sequence[TextRun], window: Window | None, idle: Window | None
) -> dict[str, Any] | None:
    """Returns joules of the runs and tokens per joule; None without a power rail.

    Args:
        window: when they were generated; None: they were not.
        idle: when the board was watched doing nothing, if it was.
    """
    rails = total_rails(list(series.of_kind("power")))
    joules = series.joules(rails, *window) if window else None
    if joules is None or window is None:
        return None
    tokens = sum(run.num_tokens for run in runs)
    seconds = window[1] - window[0]
    found: dict[str, Any] = {
        "rails": list(rails),
        "seconds": round(seconds, 3),
        "joules": round(joules, 3),
        "watts": round(joules / seconds, 3),
        "tokens_per_joule": round(tokens / joules, 4) if joules else None,
    }
    idle_joules = series.joules(rails, *idle) if idle else None
    if idle and idle_joules is not None:
        watts = idle_joules / (idle[1] - idle[0])
        above = joules - watts * seconds
        found["idle_watts"] = round(watts, 3)
        found["tokens_per_joule_above_idle"] = round(tokens / above, 4) if above > 0 else None
    return found


def allocator_peaks(series: Series, end: float) -> dict[str, float]:
    """Returns the most that malloc, the engine and the device held until `end`, in MiB, as seen."""
    found = {}
    for key, name in (("malloc", MALLOC), ("engine", ENGINE_ACCOUNT), ("device", DEVICE_USED)):
        column = series.columns.get(name)
        values = column.between(-inf, end) if column else []
        if values:
            found[f"{key}_peak_mib"] = round(max(values), 2)
    return found


def parameter_names(graphs: Iterable[Graph]) -> dict[str, str]:
    """Gives the parameter that each node of a bundle's graphs reads, by the node's name."""
    found: dict[str, str] = {}
    for graph in graphs:
        for node in graph.nodes:
            for name in node.inputs:
                if name in graph.initialisers and ".weight" in name:
                    words = name.partition(".weight")[0].split(".")
                    found[node.name] = ".".join(w for w in words if w not in ("model", "trunk"))
    return found


def _layer_name(name: str, parameters: Mapping[str, str]) -> str:
    """Gives a layer its parameter's name; fused nodes have the first one's, and a suffix."""
    node = name.partition("/")[0]
    session, colon, plain = node.rpartition(":")
    return session + colon + parameters[plain] if plain in parameters else name


def layer_record(
    times: LayerTimes, runs: Sequence[TextRun], parameters: Mapping[str, str]
) -> dict[str, Any]:
    """Returns layer times as plain data."""
    total = sum(layer.seconds * layer.calls for layer in times.layers)
    return {
        "nfe": sum(run.nfe for run in runs),
        "total_ms": round(total * 1e3, 4),
        "engine_ms": round(sum(step.engine for run in runs for step in run.steps) * 1e3, 4),
        "allocator_mib": {k: round(v / (1 << 20), 3) for k, v in times.allocator.items()},
        "layers": [
            {
                "name": _layer_name(layer.name, parameters),
                "kind": layer.kind,
                "calls": layer.calls,
                "ms": round(layer.seconds * 1e3, 5),
                "share": round(layer.seconds * layer.calls / total, 5) if total else 0.0,
                "bytes": layer.bytes,
            }
            for layer in times.layers
        ],
    }
