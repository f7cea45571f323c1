"""What a forecast says: plain data, for people and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ...runtime.bundle.manifest import GraphKey


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphForecast:
    """One graph at one shape."""

    graph: str
    dims: Mapping[str, int]
    purpose: str
    block: int | None
    precision: str
    bytes: int
    """Moved from and to memory in one run."""
    weight_bytes: int
    """Of weights read in one run, part of `bytes`."""
    macs: int
    """Multiply-accumulates of all products."""
    operations: int
    """Two per multiply-accumulate."""
    num_kernels: int
    """Launches; on a CPU the operators executed."""
    bound: str
    """memory, products or launches (`dispatch` on a CPU): what takes most of the time."""
    activations_mib: float
    """Peak of the values between kernels."""
    step_ms: float
    """One run; on a GPU replayed from a CUDA graph."""
    step_ms_uncaptured: float
    """One run with every kernel launched by the host."""
    outside_ms: float
    """Sampling and the host's share of a step."""
    tokens_per_s: float
    """Generated tokens, at the forecast's tokens per NFE, captured."""
    tokens_per_s_uncaptured: float
    watts: float | None
    """None where no power model exists (CPUs)."""
    joules_per_token: float | None
    capped: bool = False
    """Whether the mode's budget would slow the run down; times here do not count that."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """A bundle on a target."""

    target: str
    mode: str | None
    tokens_per_nfe: float
    """Generated tokens per graph run that the rates are for."""
    graphs: Mapping[GraphKey, GraphForecast]
    memory: MemoryForecast
    warnings: tuple[str, ...]
    assumptions: tuple[str, ...]
    """What the figures rest on that was not measured."""

    def to_json(self) -> dict[str, Any]:
        """Plain data for reports."""
        return {
            "target": self.target,
            "mode": self.mode,
            "tokens_per_nfe": self.tokens_per_nfe,
            "graphs": [asdict(item) for item in self.graphs.values()],
            "memory": self.memory.to_json(),
            "warnings": list(self.warnings),
            "assumptions": list(self.assumptions),
        }
