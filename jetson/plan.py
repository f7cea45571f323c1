"""What a bundle will need and do on a target, before anyone owns one: memory, time, energy.

Everything countable is counted from the graphs themselves (`cost.py`); how fast a machine is comes
from its data sheet and published figures (a board, `roofline.py`) or from a micro-benchmark (a CPU,
`host.py`). A plan is arithmetic: it runs no model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..runtime.bundle import Bundle
from ..runtime.errors import ConfigError
from ..runtime.manifest import GraphSpec, Manifest, TensorSpec
from .cost import GraphCost, graph_cost
from .host import HostRates, host_rates
from .machines import MIB, Cpu, Gpu, Machine
from .onnx_graph import ITEM_BYTES, Graph, read_graph
from .targets import Mode, Target
from .targets import target as find_target

MAX_BUFFER_MIB = 256
"""Single allocations above this fail on L4T 36.4.7 and later (NvMap, CVE-2025-33177's fix)."""

Key = tuple[str, int, int]
"""Graph name, block, context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPlan:
    """One graph at one block and context."""

    graph: str
    block: int
    context: int
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
    """Generated tokens, at the plan's tokens per NFE, captured."""
    tokens_per_s_uncaptured: float
    watts: float | None
    """None where no power model exists (CPUs)."""
    joules_per_token: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Memory by part, in MiB."""

    weights: float
    kv: float
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
class Plan:
    """A bundle on a target."""

    target: str
    mode: str | None
    tokens_per_nfe: float
    """Generated tokens per graph run that the rates are for."""
    graphs: Mapping[Key, GraphPlan]
    memory: MemoryPlan
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


def plan_bundle(
    bundle: Bundle,
    target: Target | str,
    mode: Mode | str | None = None,
    *,
    tokens_per_nfe: float,
    threads: int | None = None,
    rates: HostRates | None = None,
) -> Plan:
    """Plans a bundle on a target.

    Args:
        bundle: Opened, or a draft whose members lie in its folder.
        target: Of `targets.TARGETS`, or its name.
        mode: Power mode or its name; None: the one the board boots in.
        tokens_per_nfe: Generated tokens per graph run, prefill and commit runs included.
        threads: CPU targets: threads that compute; None as the engine chooses.
        rates: CPU targets: figures to use instead of this machine's.

    Raises:
        ConfigError: Unknown target or mode, or tokens_per_nfe out of range.
        BundleError: A graph that no plan understands.
    """
    manifest = bundle.manifest
    graphs = {
        file: _read(bundle.member(file), bundle.member(file).stat().st_mtime_ns)
        for file in sorted({spec.file for spec in manifest.graphs})
    }
    return plan_graphs(
        manifest,
        graphs,
        target,
        mode,
        tokens_per_nfe=tokens_per_nfe,
        threads=threads,
        rates=rates,
    )


@lru_cache(maxsize=8)
def _read(path: Path, _changed_ns: int) -> Graph:
    return read_graph(path.read_bytes(), path.name)


def plan_graphs(
    manifest: Manifest,
    graphs: Mapping[str, Graph],
    target: Target | str,
    mode: Mode | str | None = None,
    *,
    tokens_per_nfe: float,
    threads: int | None = None,
    rates: HostRates | None = None,
) -> Plan:
    """As `plan_bundle`, for graphs already read: {member name: graph}."""
    place = find_target(target) if isinstance(target, str) else target
    chosen = mode if isinstance(mode, Mode) else place.mode(mode)
    longest = max((spec.block for spec in manifest.graphs), default=1)
    if not 0 < tokens_per_nfe <= longest:
        raise ConfigError(
            f"tokens per NFE must be above 0 and at most the largest block of {longest}, found "
            f"{tokens_per_nfe}"
        )
    machine: Machine
    if chosen is not None:
        machine = Gpu(place, chosen)
    else:
        machine = Cpu(place, host_rates(threads) if rates is None else rates)
    costs = {
        _key(spec): graph_cost(graphs[spec.file], spec.block, spec.context)
        for spec in manifest.graphs
    }
    memory = memory_plan(manifest, costs, machine)
    return Plan(
        target=place.name,
        mode=chosen.name if chosen else None,
        tokens_per_nfe=tokens_per_nfe,
        graphs={
            _key(spec): _graph_plan(spec, costs[_key(spec)], machine, tokens_per_nfe)
            for spec in manifest.graphs
        },
        memory=memory,
        warnings=tuple(_warnings(place, manifest, graphs, costs)),
        assumptions=machine.assumptions,
    )


def _key(spec: GraphSpec) -> Key:
    return spec.name, spec.block, spec.context


def _graph_plan(
    spec: GraphSpec, cost: GraphCost, machine: Machine, tokens_per_nfe: float
) -> GraphPlan:
    run = machine.run_time(cost)
    logits = [tensor for tensor in spec.outputs if tensor.role == "logits"]
    outside = machine.outside_ms(spec.block, logits[0].shape[-1]) if logits else 0.0
    spent = machine.power(cost, run, outside)
    tokens = min(tokens_per_nfe, spec.block)
    return GraphPlan(
        graph=spec.name,
        block=spec.block,
        context=spec.context,
        precision=spec.precision,
        bytes=run.bytes,
        weight_bytes=cost.weight_bytes,
        macs=cost.macs,
        operations=cost.operations,
        num_kernels=run.num_kernels,
        bound=run.bound,
        activations_mib=machine.scratch_bytes(cost) / MIB,
        step_ms=run.captured_ms,
        step_ms_uncaptured=run.uncaptured_ms,
        outside_ms=outside,
        tokens_per_s=1e3 * tokens / (run.captured_ms + outside),
        tokens_per_s_uncaptured=1e3 * tokens / (run.uncaptured_ms + outside),
        watts=spent.watts if spent else None,
        joules_per_token=spent.joules_per_run / tokens if spent else None,
    )


def memory_plan(manifest: Manifest, costs: Mapping[Key, GraphCost], machine: Machine) -> MemoryPlan:
    """Memory by part: one copy of the weights, one cache, the scratch of the largest shape."""
    files: dict[str, float] = {}
    caches: dict[tuple[Any, ...], int] = {}
    buffers: dict[tuple[str, str], int] = {}
    for spec in manifest.graphs:
        cost = costs[_key(spec)]
        files[spec.file] = max(files.get(spec.file, 0.0), machine.weight_bytes(cost))
        for tensor in (*spec.inputs, *spec.outputs):
            # As the engines allocate: every context is a prefix of one cache, every block a
            # prefix of one buffer per role.
            cache = tensor.role == "kv"
            size = _bytes(tensor)
            if cache:
                key = (tensor.dtype, tensor.shape[1:])
                caches[key] = max(caches.get(key, 0), size)
            else:
                buffers[tensor.role, tensor.dtype] = max(
                    buffers.get((tensor.role, tensor.dtype), 0), size
                )
    scratch = max((machine.scratch_bytes(cost) for cost in costs.values()), default=0)
    return MemoryPlan(
        weights=sum(files.values()) / MIB,
        kv=sum(caches.values()) / MIB,
        activations=(scratch + sum(buffers.values())) / MIB,
        context=machine.context_mib,
        runtime=machine.runtime_mib,
        available=machine.available_mib,
    )


def _bytes(tensor: TensorSpec) -> int:
    return int(math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype])


def _warnings(
    place: Target, manifest: Manifest, graphs: Mapping[str, Graph], costs: Mapping[Key, GraphCost]
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
                f"fails such allocations from {MAX_BUFFER_MIB} MiB on: {help_}"
            )
    return found


def _large_buffers(
    manifest: Manifest, graphs: Mapping[str, Graph], costs: Mapping[Key, GraphCost]
) -> Iterator[tuple[str, float, str]]:
    """Every kind of single allocation: what it is, its bytes, and what makes it smaller."""
    for file, graph in graphs.items():
        for item in graph.initialisers.values():
            size = math.prod(item.shape) * ITEM_BYTES[item.dtype]
            yield f"weight {item.name} of {file}", size, "a smaller vocabulary or --precision"
    largest: dict[str, float] = {}
    for spec in manifest.graphs:
        for tensor in (*spec.inputs, *spec.outputs):
            largest[tensor.role] = max(largest.get(tensor.role, 0), _bytes(tensor))
    for role, size in largest.items():
        option = "--context" if role == "kv" else "--block"
        yield f"{role}", size, f"a smaller {option}"
    for (name, block, context), cost in costs.items():
        yield (
            f"the scratch memory of {name} at block {block}, context {context}",
            cost.activation_bytes,
            "a smaller --block or --context",
        )
