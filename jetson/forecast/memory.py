"""Memory of a bundle by part, and the single buffers in it that a board may refuse."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...runtime.bundle.manifest import GraphKey, Manifest, cache_role
from ...runtime.engines.buffers import buffers_of
from ...runtime.errors import ConfigError
from ..graph.cost import GraphCost
from ..graph.onnx_graph import ITEM_BYTES, Graph
from ..targets import Target
from .machines import MIB, Machine

MAX_BUFFER_MIB = 256
"""Single allocations above this may fail on L4T 36.4.7 and later (NvMap, CVE-2025-33177's fix): a
failure was reported at 1,025 MiB; 256 is our margin."""
REMEDIES: Mapping[str, str] = {
    "weights": "store them narrower (--precision fp16 or int8) or export a smaller model",
    "kv": "give a smaller --context",
    "activations": "give a smaller --block or --context; full, the whole canvas, takes most",
    "context": "only a target with more memory helps",
    "runtime": "only a target with more memory helps",
}
"""Part of the memory -> the setting that makes it smaller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryForecast:
    """Memory by part, in MiB."""

    weights: float
    kv: float
    """KV caches, and whatever else stays for a whole request."""
    activations: float
    """Scratch of the largest shape, and all inputs and outputs but the cache."""
    context: float
    """The CUDA context; 0 on a CPU."""
    runtime: float
    """Interpreter, libraries and engine."""
    available: float | None
    """What the target leaves after the system; None where that is not known."""

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, float]:
        """The parts by name."""
        return {
            "weights": self.weights,
            "kv": self.kv,
            "activations": self.activations,
            "context": self.context,
            "runtime": self.runtime,
        }

    @property
    def fits(self) -> bool:
        """Whether the total is within what is available."""
        return self.available is None or self.total <= self.available

    def to_json(self) -> dict[str, Any]:
        """All parts, the total and what is available."""
        return {**self.parts, "total": self.total, "available": self.available}


def require_fit(memory: MemoryForecast, place: Target) -> None:
    """Raises ConfigError naming the largest part and what makes it smaller, unless all fits."""
    if memory.fits:
        return
    part = max(memory.parts, key=lambda name: memory.parts[name])
    raise ConfigError(
        f"the bundle needs {memory.total:,.0f} MiB on {place.name}, which has "
        f"{memory.available:,.0f} free: {part} alone take {memory.parts[part]:,.0f}; "
        f"{REMEDIES[part]}"
    )


def memory_parts(
    manifest: Manifest, costs: Mapping[GraphKey, GraphCost], machine: Machine
) -> MemoryForecast:
    """Memory by part: one copy of the weights, one cache, the scratch of the largest shape."""
    files: dict[str, float] = {}
    for spec in manifest.graphs:
        cost = costs[spec.key]
        files[spec.file] = max(files.get(spec.file, 0.0), machine.weight_bytes(cost))
    buffers = buffers_of(manifest.graphs).values()
    kept = sum(buffer.nbytes for buffer in buffers if buffer.kept)
    others = sum(buffer.nbytes for buffer in buffers if not buffer.kept)
    scratch = max((machine.scratch_bytes(cost) for cost in costs.values()), default=0)
    return MemoryForecast(
        weights=sum(files.values()) / MIB,
        kv=kept / MIB,
        activations=(scratch + others) / MIB,
        context=machine.context_mib,
        runtime=machine.runtime_mib,
        available=machine.available_mib,
    )


def warnings_of(
    place: Target,
    manifest: Manifest,
    graphs: Mapping[str, Graph],
    costs: Mapping[GraphKey, GraphCost],
) -> list[str]:
    """What will or may go wrong that is no lack of memory in sum."""
    found = []
    if manifest.target not in (place.name, "cpu", "host") or (
        place.is_gpu and (manifest.target in ("cpu", "host"))
    ):
        found.append(
            f"the bundle was made for {manifest.target}, not for {place.name}: export it with "
            f"--target {place.name}"
        )
    if not place.is_gpu:
        return found
    for what, size, help_ in _large_buffers(manifest, graphs, costs):
        if size > MAX_BUFFER_MIB * MIB:
            found.append(
                f"{what} is one buffer of {size / MIB:.0f} MiB; on L4T 36.4.7 and later NvMap "
                "may fail such an allocation (reported at 1,025 MiB; "
                f"{MAX_BUFFER_MIB} is our margin): {help_}"
            )
    return found


def _large_buffers(
    manifest: Manifest, graphs: Mapping[str, Graph], costs: Mapping[GraphKey, GraphCost]
) -> Iterator[tuple[str, float, str]]:
    """Every kind of single allocation: what it is, its bytes, and what makes it smaller."""
    for file, graph in graphs.items():
        for item in graph.initialisers.values():
            size = math.prod(item.shape) * ITEM_BYTES[item.dtype]
            yield f"weight {item.name} of {file}", size, "a smaller vocabulary or --precision"
    largest: dict[str, float] = {}
    for spec in manifest.graphs:
        for tensor in (*spec.inputs, *spec.outputs):
            largest[tensor.role] = max(
                largest.get(tensor.role, 0), math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]
            )
    for role, size in largest.items():
        option = "--context" if cache_role(role) else "--block"
        yield f"{role}", size, f"a smaller {option}"
    for spec in manifest.graphs:
        yield (
            f"the scratch memory of {spec.label}",
            costs[spec.key].activation_bytes,
            "a smaller --block or --context",
        )
