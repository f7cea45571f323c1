"""SmoothQuant: moves the spread between channels from activations into weights, exactly.

A value x that enters products x W_1, x W_2, … is divided by a positive vector s and the rows of
every W multiplied by it, which changes nothing but what rounding sees. The division is folded into
what makes x, so that the graph keeps its nodes; `folds.py` says where that can be done.

s = max|x|^alpha / max|W|^(1 - alpha) per channel, normalised to a geometric mean of 1. alpha is
searched per value, by the measured error of the products with both sides quantised.

onnxruntime.quantization offers SmoothQuant through Intel's neural-compressor, another package, as
extra Mul nodes before each product; the folding is what makes it free.

Source: Xiao et al., "SmoothQuant", arXiv 2211.10438, equations 3 and 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from ...runtime.errors import CalibrationError
from .activations import Activation
from .folds import Fold, find_folds
from .linears import Layer

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
GAIN = 0.02
"""Share of the error that folding must save, or nothing is folded."""


def search_alphas(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    activations: Mapping[str, Activation],
    *,
    weight_limit: int = 127,
    dynamic: bool = False,
) -> dict[str, float | None]:
    """Chooses the strength of folding for each value that allows it.

    Args:
        model: Float32.
        layers: What `find_layers` found.
        activations: By value name, from `collect`.
        weight_limit: Largest integer of a weight: 127, or 64 for 7 bits.
        dynamic: Whether each run takes its own scale over [min, max] instead of a fixed one.

    Returns:
        Layer name → alpha, None where nothing is gained or can be folded.
    """
    arrays = {item.name: item for item in model.graph.initializer}
    alphas: dict[str, float | None] = {layer.name: None for layer in layers}
    for fold in find_folds(model, layers):
        seen = activations[fold.value]
        weights = [
            item.by_channel(numpy_helper.to_array(arrays[item.weight])) for item in fold.layers
        ]

        def error(
            scales: np.ndarray,
            weights: Sequence[np.ndarray] = weights,
            seen: Activation = seen,
        ) -> float:
            return _quantised_error(seen, weights, scales, weight_limit, dynamic)

        plain = error(np.ones(len(seen.channel_max)))
        tried = {alpha: error(smoothing(seen.channel_max, weights, alpha)) for alpha in ALPHAS}
        best = min(tried, key=lambda alpha: tried[alpha])
        if tried[best] < (1.0 - GAIN) * plain:
            alphas |= {layer.name: best for layer in fold.layers}
    return alphas


def smooth(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    activations: Mapping[str, Activation],
    alphas: Mapping[str, float | None],
) -> onnx.ModelProto:
    """Returns a graph that computes the same to rounding, with smoother activations.

    Args:
        model: Float32; it stays as it is.
        layers: What `find_layers` found in it.
        activations: By value name, from `collect` on this graph.
        alphas: Layer name → strength; layers that are missing or None are left alone.

    Raises:
        CalibrationError: A layer is asked for whose input cannot be folded, or two layers that
            share an input ask for different strengths.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    items = {item.name: item for item in made.graph.initializer}
    # All scales come from the graph as given: one fold's rows may be another one's columns.
    work = []
    for fold, alpha in asked_folds(model, layers, alphas):
        if alpha is not None:
            weights = [i.by_channel(numpy_helper.to_array(items[i.weight])) for i in fold.layers]
            channel_max = activations[fold.value].channel_max
            work.append((fold, smoothing(channel_max, weights, alpha)))
    for fold, scales in work:
        for output, name in fold.vectors:
            _scale(_own(made.graph, items, output, name), 1.0 / scales)
        for layer in fold.layers:
            _scale(items[layer.weight], np.expand_dims(scales, layer.out_axis))
        if fold.producer is not None:
            columns = np.ones(items[fold.producer].dims[1])
            columns[fold.first_column : fold.first_column + len(scales)] = 1.0 / scales
            _scale(items[fold.producer], columns[None, :])
    return made


def asked_folds(
    model: onnx.ModelProto, layers: Sequence[Layer], alphas: Mapping[str, float | None]
) -> list[tuple[Fold, float | None]]:
    """Lists what can be folded, with the strength asked for; raises what `smooth` does."""
    folds = find_folds(model, layers)
    asked = {name for name, alpha in alphas.items() if alpha is not None}
    stuck = sorted(asked - {layer.name for fold in folds for layer in fold.layers})
    if stuck:
        raise CalibrationError(
            f"layer {stuck[0]} has an alpha, but nothing precedes it that could take the scales: "
            'remove "alpha" from the plan'
        )
    return [(fold, _agreed(fold, alphas)) for fold in folds]


def smoothing(channel_max: np.ndarray, weights: Sequence[np.ndarray], alpha: float) -> np.ndarray:
    """Gives the vector s of one value, (channels,) float64 with a geometric mean of 1.

    Args:
        channel_max: Largest magnitude per channel (channels,).
        weights: Every matrix (channels, outputs) that the value enters.
        alpha: 0 moves everything to the activations, 1 to the weights.
    """
    largest = np.max([np.abs(matrix).max(axis=1) for matrix in weights], axis=0)
    x, w = channel_max.astype(np.float64), largest.astype(np.float64)
    alive = (x > 0) & (w > 0)
    scales = np.ones(len(x))
    scales[alive] = x[alive] ** alpha / w[alive] ** (1.0 - alpha)
    if alive.any():
        scales[alive] /= np.exp(np.log(scales[alive]).mean())
    return np.clip(scales, 1e-3, 1e3)


def _quantised_error(
    seen: Activation,
    weights: Sequence[np.ndarray],
    scales: np.ndarray,
    weight_limit: int,
    dynamic: bool,
) -> float:
    """Gives the relative error of all products of the sample with both sides quantised."""
    rows = seen.rows.astype(np.float64)
    smoothed = rows / scales
    if dynamic:
        low = np.minimum(smoothed.min(), 0.0)
        # Of nothing but zeros any step is right, except 0.
        step = float((np.maximum(smoothed.max(), 0.0) - low) / 255.0) or 1.0
        rounded = np.rint(smoothed / step) * step
    else:
        step = float((seen.channel_max / scales).max()) / 127.0 or 1.0
        rounded = np.clip(np.rint(smoothed / step), -128, 127) * step
    wrong = right = 0.0
    for matrix in weights:
        turned = matrix * scales[:, None]
        steps = np.maximum(np.abs(turned).max(axis=0), 1e-30) / weight_limit
        stored = np.rint(turned / steps) * steps
        exact = rows @ matrix
        off = rounded @ stored - exact
        wrong += float(seen.row_weights @ np.square(off).sum(axis=1))
        right += float(seen.row_weights @ np.square(exact).sum(axis=1))
    return wrong / right if right else 0.0


def _agreed(fold: Fold, alphas: Mapping[str, float | None]) -> float | None:
    """Gives the one alpha of the layers that share a value."""
    given = {alphas.get(layer.name) for layer in fold.layers}
    if len(given) > 1:
        names = ", ".join(layer.name for layer in fold.layers)
        raise CalibrationError(
            f"the layers {names} share one input and must have the same alpha: give all of them "
            "one value in the plan"
        )
    return given.pop()


def _own(
    graph: onnx.GraphProto, items: dict[str, onnx.TensorProto], output: str, name: str
) -> onnx.TensorProto:
    """Gives the initialiser that one node reads, copied first if other nodes read it too."""
    readers = [node for node in graph.node if name in node.input]
    if len(readers) == 1:
        return items[name]
    (node,) = (item for item in readers if item.output[0] == output)
    copy = graph.initializer.add()
    copy.CopyFrom(items[name])
    copy.name = f"{output}.{name}"
    node.input[list(node.input).index(name)] = copy.name
    items[copy.name] = copy
    return copy


def _scale(item: onnx.TensorProto, factors: np.ndarray) -> None:
    """Multiplies an initialiser, in place."""
    array = numpy_helper.to_array(item)
    made = (array.astype(np.float64) * factors).astype(np.float32)
    item.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(made), item.name))
