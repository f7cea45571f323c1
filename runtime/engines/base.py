"""What a backend offers: graphs made executable, with buffers that live where they run.

An update rule never sees a backend: it asks an `EngineSet` for the engine of a `GraphSpec` and gets
named buffers and `run()`. On a CPU the buffers are NumPy arrays; on a GPU they
are device arrays that only `Ops` touch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ..bundle.manifest import GraphSpec
from ..errors import EngineError
from ..gpu.device import Device

CPU_TARGETS = ("cpu", "host")
"""Targets whose int8 graphs are made for the integer operators of ONNX Runtime on CPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """What one layer of a graph took."""

    name: str
    kind: str
    """Operator, or the backend's word for what it fused."""
    seconds: float
    """Of one call, the median."""
    calls: int
    bytes: int | None
    """Activations in and out of one call; None: the backend does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimes:
    """Every layer of a set's graphs, and what the backend's allocator held meanwhile."""

    layers: tuple[LayerTime, ...]
    allocator: Mapping[str, int]
    """Bytes by the allocator's own names; empty where the backend does not say."""


class Engine(Protocol):
    """One graph at one static shape."""

    @property
    def spec(self) -> GraphSpec:
        """The graph's spec."""
        ...

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Input buffers by tensor name; write into them in place before `run`."""
        ...

    @property
    def outputs(self) -> Mapping[str, Any]:
        """Output buffers by tensor name; valid until the next `run` of an engine of the set that
        has an output of the same role."""
        ...

    def run(self) -> None:
        """Executes the graph on the buffers; raises EngineError when the backend fails."""
        ...


class EngineSet(Protocol):
    """All graphs of one bundle on one backend.

    Engines of one set share their KV buffer: the `kv` input of every context bucket is a prefix of
    one allocation (context is its outermost axis), so that changing buckets copies nothing.
    """

    @property
    def name(self) -> str:
        """Backend and provider, for reports, for example `onnxruntime-cpu`."""
        ...

    @property
    def reason(self) -> str:
        """Why this backend was taken, in words, for reports."""
        ...

    @property
    def threads(self) -> int:
        """CPU threads that compute."""
        ...

    @property
    def device(self) -> Device | None:
        """Where the buffers live; None: they are NumPy arrays."""
        ...

    @property
    def specs(self) -> tuple[GraphSpec, ...]:
        """Every graph shape on offer."""
        ...

    def engine(self, spec: GraphSpec) -> Engine:
        """Returns the engine of this shape, made ready on first use; EngineError if unknown."""
        ...

    def close(self) -> None:
        """Releases sessions and buffers."""
        ...


@runtime_checkable
class Accountable(Protocol):
    """An engine set that knows what memory it holds; sets need not, reports gain by it."""

    def account(self) -> Mapping[str, int]:
        """Returns bytes held by part: `weights`, `kv`, and the other buffers by role."""
        ...


@runtime_checkable
class LayerClocks(Protocol):
    """An engine set that can time single layers. Runs are slower meanwhile."""

    def start_layers(self) -> None:
        """Starts the clocks; engines in hand are void, ask for them again."""
        ...

    def take_layers(self) -> LayerTimes:
        """Stops the clocks and returns what they say; engines in hand are void again."""
        ...


def find_spec(specs: Sequence[GraphSpec], wanted: GraphSpec) -> GraphSpec:
    """Gives the one of `specs` that has the wanted shape; EngineError names those on offer."""
    for spec in specs:
        if spec.key == wanted.key:
            return spec
    offered = ", ".join(spec.label for spec in specs)
    raise EngineError(
        f"the bundle has no graph {wanted.label}; it has {offered}: export it with the sizes you "
        "need"
    )
