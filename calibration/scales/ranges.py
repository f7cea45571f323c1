"""Scales of activations: four observers propose a range, the measured error decides.

| observer | range |
|---|---|
| `minmax` | the largest magnitude seen |
| `percentile` | 99.99 % of the weight |
| `mse` | least expected squared error of the value itself, over its histogram |
| `entropy` | least Kullback-Leibler divergence of 8-bit from full histogram |

The error that decides is that of what the value is for: of the products it enters, over a sample
of recorded rows, `sum w |(Q(x) - x) W|^2 / sum w |x W|^2`. All scales are symmetric, step =
range / 127.

The entropy search is onnxruntime.quantization's (its HistogramCollector over our weighted
histogram, which its own collectors cannot make). Source of that observer: Migacz, "8-bit inference
with TensorRT", GTC 2017.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...runtime.errors import CalibrationError
from .activations import Activation, Histogram

LIMIT = 127
"""Largest integer of a symmetric int8 activation that is used on both sides."""
PERCENTILE = 99.99
NUM_CANDIDATES = 128
"""Ranges that `mse` tries."""
ENTROPY_BINS = 512
"""Per sign, for the entropy search, which is a plain loop over ranges."""
ENTROPY_LEVELS = 128
OBSERVERS = ("minmax", "percentile", "mse", "entropy")
CONSTANT = (
    "the activations that enter {label} are {value} everywhere on all canvases, so that they have "
    'no range: record canvases of other texts, or make this layer "float" in the recipe'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """How one value is quantised."""

    scale: float
    """Step: magnitudes up to 127 steps are kept."""
    observer: str
    """A name of OBSERVERS."""
    error: float
    """Relative squared error that the scale was chosen for."""
    errors: Mapping[str, float]
    """The same of every observer."""


def choose_range(
    activation: Activation, weights: Sequence[np.ndarray] = (), *, label: str = "a layer"
) -> Range:
    """Chooses among the observers' ranges.

    Args:
        activation: What was seen of the value.
        weights: Every matrix (channels, outputs) that it is multiplied with; without any, the
            error of the value itself decides.
        label: The layer it enters, for messages.

    Raises:
        CalibrationError: The value is constant: it has no range.
    """
    if activation.is_constant:
        value = float(activation.rows.flat[0]) + 0.0  # which turns -0 into 0
        raise CalibrationError(CONSTANT.format(label=label, value=f"{value:g}"))
    ranges = observe(activation.histogram)
    errors = {
        name: product_error(activation, limit / LIMIT, weights) for name, limit in ranges.items()
    }
    best = min(errors, key=lambda name: (errors[name], OBSERVERS.index(name)))
    return Range(scale=ranges[best] / LIMIT, observer=best, error=errors[best], errors=dict(errors))


def observe(histogram: Histogram) -> dict[str, float]:
    """Returns each observer's range; the histogram holds something beside 0."""
    return {
        "minmax": histogram.maximum,
        "percentile": percentile_range(histogram, PERCENTILE),
        "mse": mse_range(histogram),
        "entropy": entropy_range(histogram),
    }


def product_error(activation: Activation, scale: float, weights: Sequence[np.ndarray]) -> float:
    """Returns the relative weighted squared error of products with rows quantised at `scale`."""
    rows = activation.rows.astype(np.float64)
    rounded = np.clip(np.rint(rows / scale), -LIMIT - 1, LIMIT) * scale
    return relative_error(rounded - rows, rows, activation.row_weights, weights)


def relative_error(
    change: np.ndarray, rows: np.ndarray, row_weights: np.ndarray, weights: Sequence[np.ndarray]
) -> float:
    """Returns sum w |change W|^2 / sum w |rows W|^2 over all matrices; of the rows without any."""
    wrong = right = 0.0
    for matrix in weights or (None,):
        off = change if matrix is None else change @ matrix
        on = rows if matrix is None else rows @ matrix
        wrong += float(row_weights @ np.square(off).sum(axis=1))
        right += float(row_weights @ np.square(on).sum(axis=1))
    return wrong / right if right else 0.0


def percentile_range(histogram: Histogram, percent: float) -> float:
    """Returns the least magnitude that `percent` of the weight do not exceed, to a bin's width."""
    share = np.cumsum(histogram.counts) / histogram.counts.sum()
    index = int(np.searchsorted(share, percent / 100.0))
    return min((index + 1) * histogram.width, histogram.maximum)


def mse_range(histogram: Histogram) -> float:
    """Returns the range whose expected squared error over the histogram is least."""
    used = np.flatnonzero(histogram.counts)
    counts, centres = histogram.counts[used], histogram.centres[used]
    candidates = histogram.maximum * np.arange(1, NUM_CANDIDATES + 1) / NUM_CANDIDATES
    errors = []
    for limit in candidates:
        step = limit / LIMIT
        rounded = np.minimum(np.rint(centres / step), LIMIT) * step
        errors.append(float(counts @ np.square(rounded - centres)))
    return float(candidates[int(np.argmin(errors))])


def entropy_range(histogram: Histogram) -> float:
    """Returns the range that onnxruntime.quantization's entropy search finds."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    per_sign = ENTROPY_BINS
    coarse = histogram.counts.reshape(per_sign, -1).sum(axis=1)
    # Its arithmetic is in whole counts: weights become parts of 2^40.
    counts = np.rint(coarse / coarse.sum() * 2.0**40).astype(np.int64)
    edge = histogram.width * len(histogram.counts)
    both = np.concatenate([counts[::-1], [0], counts])
    edges = np.linspace(-edge, edge, len(both) + 1)
    collector = HistogramCollector(
        method="entropy",
        symmetric=True,
        num_bins=len(both),
        num_quantized_bins=ENTROPY_LEVELS,
        percentile=PERCENTILE,
        scenario="same",
    )
    most = np.float64(histogram.maximum)
    found = collector.get_entropy_threshold((both, edges, -most, most, edge), ENTROPY_LEVELS)
    return float(min(found[1], histogram.maximum))
