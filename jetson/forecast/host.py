"""What this machine's CPU does per second, and what a run of a graph takes on it by that.

The figures are measured once (`host_probe.py`) and kept in the user's cache, per CPU model, number
of threads and ONNX Runtime version. A run is the sum of its operators: products at the rate of
their number of rows and of the weights that the whole run goes through, the rest by their size.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ...runtime.cache import cache_root, locked, write_beside
from ...runtime.engines.onnxruntime import default_threads, import_backend
from ...runtime.files import parse_json
from ...runtime.measure.machine import ROOT, cpu_name
from ..graph.cost import PRODUCTS, GraphCost, NodeCost
from ..graph.origins import VIEWS
from ..sensors.throttling import CROWDED, waited_seconds
from .roofline import RunTime

VERSION = 4
"""Of the probes: figures of another version are measured again."""
COSTLY = frozenset(
    "Cos Erf Exp Gelu Log LogSoftmax Pow Sigmoid Sin Softmax Softplus Tanh".split()  # noqa: SIM905
)
"""Operators that take a transcendental function per element."""
MOVES = frozenset(
    "Concat Expand Gather GatherElements GatherND Pad Slice Split Tile Transpose Where".split()  # noqa: SIM905
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRates:
    """Measured figures of one CPU."""

    version: int
    cpu: str
    """The processor's name."""
    threads: int
    engine: str
    """ONNX Runtime's version."""
    rows: tuple[int, ...]
    """Numbers of rows that the rates are for."""
    footprints_mib: tuple[float, ...]
    product_macs_per_s: tuple[tuple[float, ...], ...]
    """Rows times weights: per footprint, per number of rows."""
    integer_macs_per_s: tuple[tuple[float, ...], ...]
    """As products, of INT8 weights and quantised activations; quantising is counted apart."""
    attention_macs_per_s: tuple[float, ...]
    """Products of two activations, per number of rows."""
    items: tuple[int, ...]
    """Numbers of elements that the times are for."""
    pointwise_s: tuple[float, ...]
    """An addition of this many elements."""
    costly_s: tuple[float, ...]
    """A softmax of this many elements."""
    move_s: tuple[float, ...]
    """A transposition of this many elements."""
    dispatch_s: float
    """An operator on next to nothing."""
    sample_row_s: float
    """Sampling and committing, per row beyond the vocabulary's part."""
    sample_item_s: float
    """Sampling, per masked row and vocabulary entry."""
    step_s: float
    """Sampling's fixed share of a step."""
    resident_mib: float
    """Memory of a process with the engine open and no model."""
    waited_share: float
    """Of the measurement's time, how much went by waiting for a CPU that other programs had. With
    one thread CPU time is measured, which that hardly touches; with more it is wall time."""

    @property
    def crowded(self) -> bool:
        """Whether other programs took part of what was measured."""
        return self.threads > 1 and self.waited_share > CROWDED

    def product_seconds(self, node: NodeCost, footprint_mib: float) -> float:
        """Seconds of a product, given the weights that the whole run goes through."""
        kernel = node.kernel
        if not node.constant_input:
            return kernel.macs / _between(kernel.rows, self.rows, self.attention_macs_per_s)
        table = self.integer_macs_per_s if kernel.dtype == "int8" else self.product_macs_per_s
        by_footprint = [_between(kernel.rows, self.rows, row) for row in table]
        return kernel.macs / _between(footprint_mib, self.footprints_mib, by_footprint)

    def node_seconds(self, node: NodeCost, footprint_mib: float) -> float:
        """Seconds of one operator."""
        if node.op in PRODUCTS:
            return self.dispatch_s + self.product_seconds(node, footprint_mib)
        if node.op in VIEWS:
            return self.dispatch_s
        if node.op in COSTLY:
            seconds = self.costly_s
        elif node.op in MOVES:
            seconds = self.move_s
        else:
            seconds = self.pointwise_s
        return self.dispatch_s + _size_seconds(node.items, self.items, seconds)

    def run_time(self, cost: GraphCost) -> RunTime:
        """Predicts one run."""
        footprint = cost.widened_bytes / 2**20
        shares = {"products": 0.0, "memory": 0.0, "dispatch": 0.0}
        for node in cost.nodes:
            taken = self.node_seconds(node, footprint)
            shares["dispatch"] += self.dispatch_s
            shares["products" if node.op in PRODUCTS else "memory"] += taken - self.dispatch_s
        total = sum(shares.values()) * 1e3
        moved = sum(
            node.kernel.weight_bytes + node.kernel.outer_bytes + sum(node.kernel.passed)
            for node in cost.nodes
        )
        return RunTime(
            captured_ms=total,
            uncaptured_ms=total,
            bytes=moved,
            num_kernels=len(cost.nodes),
            bound=max(shares, key=lambda name: shares[name]),
        )

    def sampling_seconds(self, rows: float, vocab_size: int) -> float:
        """Seconds of sampling and committing this many masked rows."""
        return self.step_s + rows * (self.sample_row_s + vocab_size * self.sample_item_s)


def host_rates(
    threads: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
    *,
    again: bool = False,
) -> HostRates:
    """Returns this machine's figures: measured on first use, and again if that was crowded.

    Args:
        progress: Called before fifteen seconds of measuring.
        again: Measure even if the cache has figures.

    Raises:
        EngineError: ONNX Runtime is not installed.
        DeviceError: The machine cannot be measured.
        BundleError: The cache directory cannot be used.
    """
    count = default_threads() if threads is None else threads
    engine = import_backend().__version__
    key = hashlib.sha256(f"{VERSION}/{cpu_name()}/{count}/{engine}".encode()).hexdigest()[:16]
    path = cache_root() / f"host-{key}.json"
    with locked(path.with_suffix(".lock")):
        known = None if again else _read(path)
        if known is None or known.crowded:
            why = "once" if known is None else "again, for other programs ran the last time"
            progress(f"measuring this machine with {count} threads, {why}: about fifteen seconds")
            found = measure(count)
            if known is None or found.waited_share < known.waited_share:
                known = found
                write_beside(path, json.dumps(asdict(known), indent=1).encode())
    return known


def _read(path: Path) -> HostRates | None:
    """Figures in the cache; None where there are none that fit."""
    try:
        values = parse_json(path.read_bytes())
        if set(values) != {field.name for field in fields(HostRates)}:
            return None
        return HostRates(**{name: _tuples(value) for name, value in values.items()})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def measure(threads: int) -> HostRates:
    """Runs the micro-benchmark."""
    from . import host_probe as probe

    waited, begin = waited_seconds(ROOT), time.perf_counter()
    prober = probe.Prober(threads)
    shapes = [(1, items // 256, 256) for items in probe.ITEMS]
    dispatch = prober.chain("Add", (1, 8), 200, (1, 8))
    few, many, narrow = (
        probe.time_sampling(rows, size) for rows, size in ((16, 8192), (32, 8192), (32, 256))
    )
    item = max(many - narrow, 0.0) / (32 * (8192 - 256))
    row = max((many - few) / 16 - item * 8192, 0.0)
    return HostRates(
        version=VERSION,
        cpu=cpu_name(),
        threads=threads,
        engine=import_backend().__version__,
        rows=probe.ROWS,
        footprints_mib=probe.FOOTPRINTS_MIB,
        product_macs_per_s=tuple(
            tuple(prober.products(footprint)) for footprint in probe.FOOTPRINTS_MIB
        ),
        integer_macs_per_s=tuple(
            tuple(prober.integers(footprint)) for footprint in probe.FOOTPRINTS_MIB
        ),
        attention_macs_per_s=tuple(prober.attention()),
        items=probe.ITEMS,
        pointwise_s=tuple(prober.chain("Add", shape, 20, shape) for shape in shapes),
        costly_s=tuple(prober.chain("Softmax", shape, 20, None) for shape in shapes),
        move_s=tuple(prober.moves((1, 32, items // (32 * 64), 64), 20) for items in probe.ITEMS),
        dispatch_s=dispatch,
        sample_row_s=row,
        sample_item_s=item,
        step_s=max(many - 32 * (row + item * 8192), 0.0),
        resident_mib=probe.resident_mib(threads),
        waited_share=_waited_share(waited, begin),
    )


def _waited_share(before: float | None, begin: float) -> float:
    """Returns the share of the time since `begin` that was spent waiting; 0 where unknown."""
    after = waited_seconds(ROOT)
    if before is None or after is None:
        return 0.0
    return round((after - before) / (time.perf_counter() - begin), 4)


def _between(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """Interpolates in the logarithms of x and y; beyond the ends, the last value."""
    if x <= xs[0]:
        return ys[0]
    for low, high, at_low, at_high in zip(xs, xs[1:], ys, ys[1:], strict=False):
        if x <= high:
            share = math.log(x / low) / math.log(high / low)
            return math.exp((1 - share) * math.log(at_low) + share * math.log(at_high))
    return ys[-1]


def _size_seconds(items: float, sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Time of an operator on this many elements: by the share per element, without dispatch."""
    per_item = [taken / size for taken, size in zip(seconds, sizes, strict=True)]
    return items * _between(max(items, 1), sizes, per_item)
