"""What a bundle will need and do on a target, before anyone owns one: memory, time, energy.

Everything countable is counted from the graphs themselves (`cost.py`); how fast a machine is comes
from its data sheet and published figures (a board, `roofline.py`) or from a micro-benchmark (a CPU,
`host.py`). A forecast is arithmetic: it runs no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.manifest import GraphKey, GraphSpec, Manifest
from ...runtime.errors import ConfigError
from ...runtime.families.table import find_family
from ..graph.cost import GraphCost, graph_cost
from ..graph.onnx_graph import Graph, read_graph
from ..targets import PowerMode, Target
from ..targets import target as find_target
from .host import HostRates, host_rates
from .machines import MIB, Board, Cpu, Machine
from .memory import MemoryForecast, memory_parts, warnings_of


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


def forecast_bundle(
    bundle: Bundle, target: Target | str, mode: PowerMode | str | None = None, **options: Any
) -> Forecast:
    """Forecasts a bundle, or a draft whose members lie in its folder, as `forecast_graphs`."""
    return forecast_graphs(bundle.manifest, read_graphs(bundle), target, mode, **options)


@lru_cache(maxsize=8)
def _read(path: Path, _changed_ns: int) -> Graph:
    return read_graph(path.read_bytes(), path.name)


def forecast_graphs(
    manifest: Manifest,
    graphs: Mapping[str, Graph],
    target: Target | str,
    mode: PowerMode | str | None = None,
    *,
    tokens_per_nfe: float,
    threads: int | None = None,
    rates: HostRates | None = None,
) -> Forecast:
    """Forecasts graphs on a target.

    Args:
        graphs: By member name.
        mode: Power mode or its name; None: the one the board boots in.
        threads: CPU targets: threads that compute; None as the engine chooses.
        rates: CPU targets: figures to use instead of this machine's.

    Raises:
        ConfigError: Unknown target or mode, or tokens_per_nfe out of range.
        BundleError: A graph with an operator that forecasts do not know.
    """
    place = find_target(target) if isinstance(target, str) else target
    chosen = mode if isinstance(mode, PowerMode) else place.mode(mode)
    most = max((spec.rows for spec in manifest.graphs), default=1)
    if not 0 < tokens_per_nfe <= most:
        raise ConfigError(
            f"tokens per NFE must be above 0 and at most {most}, the rows of the largest run; "
            f"found {tokens_per_nfe}"
        )
    machine: Machine
    if chosen is not None:
        machine = Board(place, chosen)
    else:
        machine = Cpu(place, host_rates(threads) if rates is None else rates)
    costs = _costs(manifest, graphs)
    memory = memory_parts(manifest, costs, machine)
    family = find_family(manifest.family)
    parts = {
        spec.key: _graph_forecast(
            spec, costs[spec.key], machine, tokens_per_nfe, family.text_rows(spec)
        )
        for spec in manifest.graphs
    }
    warnings = warnings_of(place, manifest, graphs, costs)
    if chosen is not None and any(part.capped for part in parts.values()):
        warnings.append(
            f"mode {chosen.name} caps the power below what a run would draw: clocks will fall, and "
            "predicted times do not count that"
        )
    return Forecast(
        target=place.name,
        mode=chosen.name if chosen else None,
        tokens_per_nfe=tokens_per_nfe,
        graphs=parts,
        memory=memory,
        warnings=tuple(warnings),
        assumptions=machine.assumptions,
    )


def forecast_memory(bundle: Bundle, target: Target | str) -> MemoryForecast:
    """The memory part of a forecast; needs no measured rates, on a CPU either.

    Raises:
        ConfigError: Unknown target.
        BundleError: A graph with an operator that forecasts do not know.
    """
    place = find_target(target) if isinstance(target, str) else target
    mode = place.mode()
    machine = Cpu(place, None) if mode is None else Board(place, mode)
    graphs = read_graphs(bundle)
    return memory_parts(bundle.manifest, _costs(bundle.manifest, graphs), machine)


def read_graphs(bundle: Bundle) -> dict[str, Graph]:
    """Reads every graph file of a bundle, by member name."""
    files = sorted({spec.file for spec in bundle.manifest.graphs})
    return {
        file: _read(bundle.member(file), bundle.member(file).stat().st_mtime_ns) for file in files
    }


def _costs(manifest: Manifest, graphs: Mapping[str, Graph]) -> dict[GraphKey, GraphCost]:
    return {spec.key: graph_cost(graphs[spec.file], spec.dims) for spec in manifest.graphs}


def _graph_forecast(
    spec: GraphSpec, cost: GraphCost, machine: Machine, tokens_per_nfe: float, text_rows: int
) -> GraphForecast:
    run = machine.run_time(cost)
    logits = [tensor for tensor in spec.outputs if tensor.role == "logits"]
    outside = machine.outside_ms(text_rows * spec.batch, logits[0].shape[-1]) if logits else 0.0
    spent = machine.power(cost, run, outside)
    tokens = min(tokens_per_nfe, spec.rows) * spec.batch
    return GraphForecast(
        graph=spec.name,
        dims=dict(spec.dims),
        purpose=spec.purpose,
        block=spec.block,
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
        capped=spent is not None and spent.capped,
    )
