"""SmoothQuant: moves the spread between channels from activations into weights, exactly.

A value x that enters products x W_1, x W_2, … is divided by a positive vector s and the rows of
every W multiplied by it, which changes nothing but what rounding sees. The division is folded into
what makes x, so that the graph keeps its nodes:

| x, that enters products | where 1 / s goes |
|---|---|
| y * g, g a constant vector (a norm's weight) | g |
| y * g + b (a norm with a bias) | g and b |
| y * u, u a part of a product h U (a gated MLP) | the columns of U that make u |

A value that anything but quantisable products reads, or a matrix that is also looked up (a tied
embedding), is left alone, and so is attention's output, whose scale would have to be in the cached
values too.

s = max|x|^alpha / max|W|^(1 - alpha) per channel, normalised to a geometric mean of 1. alpha is
searched per value, by the measured error of the products with both sides quantised.

onnxruntime.quantization offers SmoothQuant through Intel's neural-compressor, another package, as
extra Mul nodes before each product; the folding is what makes it free.

Source: Xiao et al., "SmoothQuant", arXiv 2211.10438, equations 3 and 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...runtime.errors import CalibrationError
from ..graphs import array_of, constant, rank_of, values_of
from ..layers import WeightLayer
from .activations import Activation
from .products import Products

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
GAIN = 0.02
"""Share of the error that folding must save, or nothing is folded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """A value that can be divided by a vector, and where the division goes."""

    value: str
    layers: tuple[WeightLayer, ...]
    """Every layer that it enters."""
    vectors: tuple[tuple[str, str], ...]
    """What to divide: the first output of a node and an initialiser (channels,) that it reads.
    Other nodes may read the same one, since equal constants are stored once."""
    producer: str | None = None
    """Initialiser (K, N) of which columns are to be divided, for a part of a product."""
    first_column: int = 0


def find_folds(model: ir.Model, layers: Sequence[WeightLayer]) -> tuple[Fold, ...]:
    """Lists the values that can be smoothed without an extra node, in the order of `layers`."""
    values = values_of(model)
    found = []
    for name in dict.fromkeys(name for layer in layers for name in layer.inputs):
        value = values[name]
        readers = tuple(layer for layer in layers if name in layer.inputs)
        products = {
            output
            for layer in readers
            for output, entering in zip(layer.products, layer.inputs, strict=True)
            if entering == name
        }
        plain = all(
            layer.kind == "linear" and layer.quantizable and set(layer.inputs) == {name}
            for layer in readers
        )
        if plain and {node.outputs[0].name for node in value.consumers()} == products:
            fold = _fold(value, readers, layers)
            if fold is not None:
                found.append(fold)
    return tuple(found)


def _is_vector(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and rank_of(value) == 1


def _read_once(value: ir.Value | None) -> bool:
    """Returns whether one node reads a value, once."""
    return value is not None and len(value.uses()) == 1 and not value.is_graph_output()


def _fold(
    value: ir.Value, readers: tuple[WeightLayer, ...], layers: Sequence[WeightLayer]
) -> Fold | None:
    """Says how a value's division can be folded; None if it cannot."""
    node = value.producer()
    if node is None:
        return None
    if node.op_type == "LayerNormalization" and all(map(_is_vector, node.inputs[1:])):
        return _into_vectors(value, readers, [(node, item) for item in node.inputs[1:]])
    vectors: list[tuple[ir.Node, ir.Value | None]] = []
    if node.op_type == "Add":
        bias = [item for item in node.inputs if _is_vector(item)]
        rest = [item for item in node.inputs if not _is_vector(item)]
        if len(bias) != 1 or rest[0] is None or not _read_once(rest[0]):
            return None
        vectors.append((node, bias[0]))
        node = rest[0].producer()
    if node is None or node.op_type != "Mul":
        return None
    gains = [item for item in node.inputs if _is_vector(item)]
    if len(gains) == 1:
        return _into_vectors(value, readers, [*vectors, (node, gains[0])])
    return None if vectors else _into_product(node, value, readers, layers)


def _into_vectors(
    value: ir.Value,
    readers: tuple[WeightLayer, ...],
    vectors: Sequence[tuple[ir.Node, ir.Value | None]],
) -> Fold:
    named = ((node.outputs[0].name, item.name) for node, item in vectors if item is not None)
    return Fold(
        value=str(value.name),
        layers=readers,
        vectors=tuple((str(output), str(name)) for output, name in named),
    )


def _into_product(
    node: ir.Node, value: ir.Value, readers: tuple[WeightLayer, ...], layers: Sequence[WeightLayer]
) -> Fold | None:
    """Finds an operand of a Mul that is a part of a product which nothing else reads."""
    made_by = {layer.products[0]: layer for layer in layers if layer.kind == "linear"}
    for part in node.inputs:
        split = part.producer() if part is not None else None
        if split is None or split.op_type != "Split" or not _read_once(part):
            continue
        whole = split.inputs[0]
        layer = made_by.get(str(whole.name)) if whole is not None else None
        if layer is None or layer.out_axis != 1 or len(layer.products) != 1:
            continue
        sizes = _split_sizes(split, whole)
        if sizes is None or not _read_once(whole):
            continue
        place = split.outputs.index(part)
        return Fold(
            value=str(value.name),
            layers=readers,
            vectors=(),
            producer=layer.weight,
            first_column=sum(sizes[:place]),
        )
    return None


def _split_sizes(split: ir.Node, whole: ir.Value | None) -> list[int] | None:
    """Returns the sizes of a Split along the last axis of a product; None if unknown."""
    axis = split.attributes["axis"].as_int() if "axis" in split.attributes else 0
    if axis not in (-1, 2):
        return None
    sizes = split.inputs[1] if len(split.inputs) > 1 else None
    if sizes is not None and sizes.is_initializer():
        return [int(size) for size in array_of(sizes)]
    product = whole.producer() if whole is not None else None
    matrix = product.inputs[1] if product is not None else None
    assert matrix is not None
    width, parts = array_of(matrix).shape[1], len(split.outputs)
    return [width // parts] * parts if width % parts == 0 else None


def search_alphas(
    model: ir.Model,
    layers: Sequence[WeightLayer],
    activations: Mapping[str, Activation],
    *,
    dynamic: bool = False,
) -> dict[str, float | None]:
    """Chooses the strength of folding for each value that allows it.

    Args:
        model: Float32.
        activations: By value name, from `collect`.
        dynamic: Whether each row of a run takes its own scale instead of a fixed one for all.

    Returns:
        Layer name → alpha, None where nothing is gained or can be folded.
    """
    alphas: dict[str, float | None] = {layer.name: None for layer in layers}
    for fold in find_folds(model, layers):
        seen = activations[fold.value]
        weights = _matrices(model, fold)
        products = Products(seen, weights)
        plain = products.error(dynamic=dynamic)
        tried = {
            alpha: products.error(
                dynamic=dynamic, factors=smoothing(seen.channel_max, weights, alpha)
            )
            for alpha in ALPHAS
        }
        best = min(tried, key=lambda alpha: tried[alpha])
        if tried[best] < (1.0 - GAIN) * plain:
            alphas |= {layer.name: best for layer in fold.layers}
    return alphas


def smooth(
    model: ir.Model,
    layers: Sequence[WeightLayer],
    activations: Mapping[str, Activation],
    alphas: Mapping[str, float | None],
) -> ir.Model:
    """Returns a graph that computes the same to rounding, with smoother activations.

    Args:
        activations: By value name, from `collect` on this graph.
        alphas: Layer name → strength; layers that are missing or None are left alone.

    Raises:
        CalibrationError: A layer is asked for whose input cannot be folded, or two layers that
            share an input ask for different strengths.
    """
    # All scales come from the graph as given: one fold's rows may be another one's columns.
    work = [
        (fold, smoothing(activations[fold.value].channel_max, _matrices(model, fold), alpha))
        for fold, alpha in asked_folds(model, layers, alphas)
        if alpha is not None
    ]
    made = model.clone()
    items = made.graph.initializers
    for fold, scales in work:
        for output, name in fold.vectors:
            _scale(_own(made, output, name), 1.0 / scales)
        for layer in fold.layers:
            _scale(items[layer.weight], np.expand_dims(scales, layer.out_axis))
        if fold.producer is not None:
            columns = np.ones(array_of(items[fold.producer]).shape[1])
            columns[fold.first_column : fold.first_column + len(scales)] = 1.0 / scales
            _scale(items[fold.producer], columns[None, :])
    return made


def _matrices(model: ir.Model, fold: Fold) -> list[np.ndarray]:
    """Returns every matrix (channels, outputs) that a fold's value enters."""
    items = model.graph.initializers
    return [layer.by_channel(array_of(items[layer.weight])) for layer in fold.layers]


def asked_folds(
    model: ir.Model, layers: Sequence[WeightLayer], alphas: Mapping[str, float | None]
) -> list[tuple[Fold, float | None]]:
    """Lists what can be folded, with the strength asked for; raises what `smooth` does."""
    folds = find_folds(model, layers)
    asked = {name for name, alpha in alphas.items() if alpha is not None}
    stuck = sorted(asked - {layer.name for fold in folds for layer in fold.layers})
    if stuck:
        raise CalibrationError(
            f"layer {stuck[0]} has an alpha, but nothing precedes it that could take the scales: "
            'remove "alpha" from the recipe'
        )
    return [(fold, _agreed(fold, alphas)) for fold in folds]


def smoothing(channel_max: np.ndarray, weights: Sequence[np.ndarray], alpha: float) -> np.ndarray:
    """Returns the vector s of one value, (channels,) float64 with a geometric mean of 1.

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


def _agreed(fold: Fold, alphas: Mapping[str, float | None]) -> float | None:
    """Returns the one alpha of the layers that share a value."""
    given = {alphas.get(layer.name) for layer in fold.layers}
    if len(given) > 1:
        names = ", ".join(layer.name for layer in fold.layers)
        raise CalibrationError(
            f"the layers {names} share one input and must have the same alpha: give all of them "
            "one value in the recipe"
        )
    return given.pop()


def _own(model: ir.Model, output: str, name: str) -> ir.Value:
    """Returns the initialiser that one node reads, copied first if other nodes read it too."""
    item = model.graph.initializers[name]
    if len(item.consumers()) == 1:
        return item
    (reader,) = (node for node in item.consumers() if node.outputs[0].name == output)
    copy = constant(model.graph, f"{output}.{name}", array_of(item))
    reader.replace_input_with(reader.inputs.index(item), copy)
    return copy


def _scale(item: ir.Value, factors: np.ndarray) -> None:
    made = (array_of(item).astype(np.float64) * factors).astype(np.float32)
    item.const_value = ir.tensor(np.ascontiguousarray(made), name=item.name)
