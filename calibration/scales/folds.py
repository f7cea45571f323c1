"""Which values of a graph can be divided by a vector for nothing, and where the division goes.

| x, that enters products | where 1 / s goes |
|---|---|
| y * g, g a constant vector (a norm's weight) | g |
| y * g + b (a norm with a bias) | g and b |
| y * u, u a part of a product h U (a gated MLP) | the columns of U that make u |

A value that anything but quantisable products reads, or a matrix that is also looked up (a tied
embedding), is left alone, and so is attention's output, whose scale would have to stand in the
cached values. Knows no family: it reads the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from onnx import numpy_helper

from .linears import Layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """A value that can be divided by a vector, and where the division goes."""

    value: str
    layers: tuple[Layer, ...]
    """Every layer that it enters."""
    vectors: tuple[tuple[str, str], ...]
    """What to divide: the first output of a node and an initialiser (channels,) that it reads.
    Other nodes may read the same one, since equal constants are stored once."""
    producer: str | None = None
    """Initialiser (K, N) of which columns are to be divided, for a part of a product."""
    first_column: int = 0


def find_folds(model: onnx.ModelProto, layers: Sequence[Layer]) -> tuple[Fold, ...]:
    """Lists the values that can be smoothed for nothing, in the order of `layers`."""
    graph = _Graph(model.graph)
    values = list(dict.fromkeys(value for layer in layers for value in layer.inputs))
    found = []
    for value in values:
        readers = tuple(layer for layer in layers if value in layer.inputs)
        products = {
            output
            for layer in readers
            for output, name in zip(layer.products, layer.inputs, strict=True)
            if name == value
        }
        plain = all(
            layer.kind == "linear" and layer.quantizable and set(layer.inputs) == {value}
            for layer in readers
        )
        if not plain or {node.output[0] for node in graph.users(value)} != products:
            continue
        fold = _fold(graph, value, readers, layers)
        if fold is not None:
            found.append(fold)
    return tuple(found)


class _Graph:
    """Look-ups in one graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.items = {item.name: item for item in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}
        self._users: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._users.setdefault(name, []).append(node)
        self._outputs = {item.name for item in graph.output}

    def users(self, name: str) -> list[onnx.NodeProto]:
        """Nodes that read a value, each once per reading."""
        return self._users.get(name, [])

    def only_reader(self, name: str, node: onnx.NodeProto) -> bool:
        """Whether a value is read by this node alone, once."""
        return self.users(name) == [node] and name not in self._outputs

    def vector(self, name: str) -> bool:
        """Whether a name is a constant vector."""
        item = self.items.get(name)
        return item is not None and len(item.dims) == 1


def _fold(
    graph: _Graph, value: str, readers: tuple[Layer, ...], layers: Sequence[Layer]
) -> Fold | None:
    """Says how a value's division can be folded; None if it cannot."""
    node = graph.makers.get(value)
    if node is None:
        return None
    if node.op_type == "LayerNormalization" and all(map(graph.vector, node.input[1:])):
        parts = tuple((node.output[0], name) for name in node.input[1:])
        return Fold(value=value, layers=readers, vectors=parts)
    vectors: list[tuple[str, str]] = []
    if node.op_type == "Add":
        bias = [name for name in node.input if graph.vector(name)]
        rest = [name for name in node.input if name not in bias]
        if len(bias) != 1 or not graph.only_reader(rest[0], node):
            return None
        vectors.append((node.output[0], bias[0]))
        node = graph.makers.get(rest[0])
    if node is None or node.op_type != "Mul":
        return None
    gains = [name for name in node.input if graph.vector(name)]
    if len(gains) == 1:
        vectors.append((node.output[0], gains[0]))
        return Fold(value=value, layers=readers, vectors=tuple(vectors))
    return None if vectors else _fold_into_product(graph, node, value, readers, layers)


def _fold_into_product(
    graph: _Graph,
    node: onnx.NodeProto,
    value: str,
    readers: tuple[Layer, ...],
    layers: Sequence[Layer],
) -> Fold | None:
    """Finds an operand of a Mul that is a part of a product which nothing else reads."""
    made_by = {layer.products[0]: layer for layer in layers if layer.kind == "linear"}
    for name in node.input:
        split = graph.makers.get(name)
        if split is None or split.op_type != "Split" or not graph.only_reader(name, node):
            continue
        layer = made_by.get(split.input[0])
        sizes = _split_sizes(graph, split, layer)
        if layer is None or layer.out_axis != 1 or len(layer.products) != 1 or sizes is None:
            continue
        if not graph.only_reader(split.input[0], split):
            continue
        place = list(split.output).index(name)
        return Fold(
            value=value,
            layers=readers,
            vectors=(),
            producer=layer.weight,
            first_column=sum(sizes[:place]),
        )
    return None


def _split_sizes(graph: _Graph, split: onnx.NodeProto, layer: Layer | None) -> list[int] | None:
    """Gives the sizes of a Split along the last axis of a layer's product; None if unknown."""
    axis = next((item.i for item in split.attribute if item.name == "axis"), 0)
    if layer is None or axis not in (-1, 2):
        return None
    if len(split.input) > 1 and split.input[1] in graph.items:
        return [int(size) for size in numpy_helper.to_array(graph.items[split.input[1]])]
    width, parts = graph.items[layer.weight].dims[1], len(split.output)
    return [width // parts] * parts if width % parts == 0 else None
