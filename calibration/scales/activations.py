"""What the values of a graph look like on canvases: histograms, channel maxima, a sample of rows.

Runs the floating-point graph with inner values as outputs, one canvas at a time, so that
memory grows with the number of values and not with canvases. Every position counts by its
canvas's weights; one that weighs nothing is left out. Of a value only its magnitude is kept: scales
are symmetric around 0.

The `calibrate` module of onnxruntime.quantization is not used for this: its collectors hold every
output of every batch in memory before they count, know no weights, and quantise whole tensors of
fixed shape. Its entropy search over a finished histogram is used, in `ranges.py`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from ...runtime.errors import CalibrationError
from ..canvases.canvases import NUM_DECILES, RecordedRun
from ..graphs import in_order, open_session
from ..layers import WeightLayer
from .extremes import unsound

NUM_BINS = 4096
"""Of a histogram; between 2048 and all of them are in use, since the width grows by doubling."""
MAX_ROWS = 256
"""Sampled rows per value; fewer if there are more canvases than rows."""
Progress = Callable[[int, int], None]


@dataclass(slots=True, kw_only=True)
class Histogram:
    """Weighted counts of magnitudes in bins of equal width, from 0 on."""

    counts: np.ndarray = field(default_factory=lambda: np.zeros(NUM_BINS))
    """(NUM_BINS,) float64."""
    width: float = 0.0
    """Of a bin; 0 as long as nothing but 0 was seen."""
    maximum: float = 0.0
    zeros: float = 0.0
    """Weight of what came while nothing but 0 had been seen."""

    def add(self, magnitudes: np.ndarray, weights: np.ndarray) -> None:
        """Counts finite magnitudes (n,) with weights (n,), in place."""
        largest = float(magnitudes.max(initial=0.0))
        self.maximum = max(self.maximum, largest)
        if self.width == 0.0:
            if largest == 0.0:
                self.zeros += float(weights.sum())
                return
            self.width = largest / NUM_BINS
            self.counts[0] += self.zeros
            self.zeros = 0.0
        while largest > self.width * NUM_BINS:
            half = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([half, np.zeros_like(half)])
            self.width *= 2.0
        bins = np.minimum((magnitudes / self.width).astype(np.int64), NUM_BINS - 1)
        self.counts += np.bincount(bins, weights=weights, minlength=NUM_BINS)

    @property
    def centres(self) -> np.ndarray:
        """(NUM_BINS,) float64: the middle of each bin."""
        return (np.arange(NUM_BINS) + 0.5) * self.width

    @property
    def total(self) -> float:
        """All weight."""
        return float(self.counts.sum()) + self.zeros


@dataclass(slots=True, kw_only=True)
class Activation:
    """One value over all canvases."""

    histogram: Histogram
    channel_max: np.ndarray
    """(channels,) float32: largest magnitude of each index of the last axis."""
    rows: np.ndarray
    """(n, channels) float32: a sample of positions."""
    row_weights: np.ndarray
    """(n,) float64."""
    max_by_decile: dict[int, float]
    """Largest magnitude per mask-ratio decile (0: nothing masked)."""
    is_constant: bool
    """True when every element of it was the same on every canvas."""


def layer_inputs(layers: Iterable[WeightLayer]) -> dict[str, str]:
    """Returns the values that enter products, each with the name of the first layer it enters."""
    found: dict[str, str] = {}
    for layer in layers:
        for value in layer.inputs:
            found.setdefault(value, layer.name)
    return found


def collect(
    model: ir.Model,
    canvases: Sequence[RecordedRun],
    names: Mapping[str, str],
    *,
    graph: str | None = None,
    apart: Mapping[str, Sequence[int]] = MappingProxyType({}),
    seed: int = 0,
    threads: int = 1,
    progress: Progress | None = None,
) -> dict[str, Activation]:
    """Runs a graph over canvases and describes some of its values.

    Args:
        canvases: Those of other graphs than `graph` are left out.
        names: Float32 values of the graph → what to call them in messages: the layer they enter.
        graph: Name of the graph; None: the model's own.
        apart: Channels of values that are taken as 0.

    Returns:
        Value name → what it looks like.

    Raises:
        CalibrationError: No canvas of this graph; NaN or infinity on one, with the first layer
            of the graph that meets it.
    """
    graph = graph or model.graph.name
    own = [item for item in canvases if item.spec.name == graph]
    if not own:
        raise CalibrationError(
            f"there is no canvas of graph {graph}: record canvases of this model, with its own "
            "block and context sizes"
        )
    session = open_session(model, names, threads)
    wanted = in_order(model, names)
    collectors = {name: _Collector(name, len(own), seed) for name in wanted}
    for number, canvas in enumerate(own):
        for name, array in zip(wanted, session.run(wanted, dict(canvas.inputs)), strict=True):
            if not np.isfinite(array).all():
                raise unsound(f"what enters layer {names[name]} is", canvas)
            if name in apart:
                array[..., list(apart[name])] = 0
            collectors[name].add(array, canvas)
        if progress is not None:
            progress(number + 1, len(own))
    return {name: collector.finish() for name, collector in collectors.items()}


def second_moments(
    model: ir.Model,
    canvases: Sequence[RecordedRun],
    names: Mapping[str, str],
    *,
    graph: str,
) -> dict[str, np.ndarray]:
    """Runs a graph over canvases and returns the weighted second moments of some of its values.

    Args:
        model: Float32, complete; it is not changed.
        canvases: Those of other graphs than `graph` are left out.
        names: As for `collect`.
        graph: Name of the graph.

    Returns:
        Value name → (channels, channels) float64.
    """
    if not names:
        return {}
    wanted = in_order(model, names)
    session = open_session(model, names)
    found: dict[str, np.ndarray] = {}
    for canvas in canvases:
        if canvas.spec.name != graph:
            continue
        for name, array in zip(wanted, session.run(wanted, dict(canvas.inputs)), strict=True):
            rows = array.reshape(-1, array.shape[-1]).astype(np.float64)
            moment = (rows * _weights(array, canvas)[:, None]).T @ rows
            found[name] = found[name] + moment if name in found else moment
    return found


class _Collector:
    """Sums up one value over canvases."""

    def __init__(self, name: str, num_canvases: int, seed: int) -> None:
        self._histogram = Histogram()
        self._channel_max: np.ndarray | None = None
        self._rows: list[np.ndarray] = []
        self._row_weights: list[np.ndarray] = []
        self._by_decile: dict[int, float] = {}
        self._low, self._high = np.inf, -np.inf
        self._each = max(1, MAX_ROWS // num_canvases)
        self._rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
        # With more canvases than rows, only some give one, evenly spread.
        self._stride = max(1, -(-num_canvases // MAX_ROWS))
        self._count = 0

    def add(self, array: np.ndarray, canvas: RecordedRun) -> None:
        """Takes a value (…, channels) float32 of one run."""
        rows = array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)
        weights = _weights(array, canvas)
        self._low = min(self._low, float(rows.min()))
        self._high = max(self._high, float(rows.max()))
        rows, weights = rows[weights > 0], weights[weights > 0]  # what nothing reads may clip
        magnitudes = np.abs(rows)
        self._histogram.add(magnitudes.ravel(), np.repeat(weights, rows.shape[1]))
        largest = magnitudes.max(axis=0, initial=0.0)
        decile = min(canvas.decile, NUM_DECILES)
        self._by_decile[decile] = max(self._by_decile.get(decile, 0.0), float(largest.max()))
        if self._channel_max is None:
            self._channel_max = largest.astype(np.float32)
        elif len(self._channel_max) == len(largest):
            np.maximum(self._channel_max, largest, out=self._channel_max)
        if self._count % self._stride == 0:
            chosen = self._rng.permutation(len(rows))[: self._each]
            self._rows.append(rows[chosen].astype(np.float32))
            self._row_weights.append(weights[chosen])
        self._count += 1

    def finish(self) -> Activation:
        """Returns the sums."""
        assert self._channel_max is not None
        return Activation(
            histogram=self._histogram,
            channel_max=self._channel_max,
            rows=np.concatenate(self._rows),
            row_weights=np.concatenate(self._row_weights),
            max_by_decile=dict(sorted(self._by_decile.items())),
            is_constant=self._low == self._high,
        )


def _weights(array: np.ndarray, canvas: RecordedRun) -> np.ndarray:
    """Returns each row's weight: its position's where rows are the block's positions."""
    if array.ndim >= 2 and array.shape[-2] == canvas.spec.rows:
        repeats = int(np.prod(array.shape[:-2]))
        return np.tile(canvas.row_weights, repeats)
    return np.full(
        max(1, array.size // max(1, array.shape[-1] if array.ndim else 1)), canvas.weight
    )
