"""The layers of a graph that can be quantised: products with a constant matrix, and embeddings.

Both recipes (Q/DQ for GPUs, the CPU's own) name layers as this module finds them, and a plan is
keyed by these names. Knows no family: it reads the graph, and the roles of its inputs.

Attention products have no constant operand, so they are never among them. A layer that does not
depend on the canvas (a timestep's embedding, the modulation computed from it) is found but not
`quantizable`: it is small, and an error there shifts every position at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

CANVAS_ROLE = "canvas"
PRODUCTS = frozenset(("MatMul", "Gemm"))
_BREAKS = PRODUCTS | {"Softmax", "ReduceMean", "LayerNormalization"}
"""What lies behind one of these is another layer's business."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One weight matrix and where it is used."""

    name: str
    """After the parameter, without `model.` and `.weight`."""
    weight: str
    """Initialiser."""
    kind: str
    """`linear` (products only), `embedding` (lookups only) or `tied` (both)."""
    products: tuple[str, ...]
    """First outputs of its MatMul and Gemm nodes."""
    inputs: tuple[str, ...]
    """The activations that enter them, in the order of `products`."""
    lookups: tuple[str, ...]
    """Outputs of its Gather nodes."""
    out_axis: int
    """Axis of the stored matrix that counts outputs of the product (rows of an embedding)."""
    head: bool
    """True when nothing but elementwise work stands between it and the graph's outputs."""
    quantizable: bool

    def by_channel(self, matrix: np.ndarray) -> np.ndarray:
        """Gives the stored matrix as (channels that enter, outputs)."""
        return matrix if self.out_axis == 1 else matrix.T

    @property
    def precisions(self) -> tuple[str, ...]:
        """What a plan may ask for, most compressed first."""
        if not self.quantizable:
            return ("float",)
        return ("int8-weight", "float") if self.kind == "embedding" else PRECISIONS


PRECISIONS = ("int8", "int8-weight", "float")
"""int8: weights and activations; int8-weight: stored as int8, computed in floating point."""


def find_layers(model: onnx.ModelProto, roles: Mapping[str, str]) -> tuple[Layer, ...]:
    """Lists the layers of a floating-point graph, in the graph's order.

    Args:
        model: As traced: float32, nothing quantised yet.
        roles: Role of each graph input by its name.
    """
    graph = model.graph
    stored = {item.name for item in graph.initializer if len(item.dims) == 2}
    turned = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Transpose" and node.input[0] in stored
    }
    seen: dict[str, _Uses] = {}
    for node in graph.node:
        if node.op_type in PRODUCTS and not _is_constant(node.input[0], stored, turned):
            matrix = node.input[1]
            home = turned.get(matrix, matrix)
            if home in stored:
                uses = seen.setdefault(home, _Uses())
                uses.products.append((node.output[0], node.input[0]))
                uses.out_axes.add(0 if (matrix in turned) != _transposes(node) else 1)
        elif node.op_type == "Gather" and node.input[0] in stored and _axis(node) == 0:
            uses = seen.setdefault(node.input[0], _Uses())
            uses.lookups.append(node.output[0])
            uses.out_axes.add(0)
    alive = _depends_on_canvas(graph, roles)
    return tuple(
        _layer(graph, name, uses, alive) for name, uses in seen.items() if len(uses.out_axes) == 1
    )


class _Uses:
    """What reads one matrix."""

    def __init__(self) -> None:
        self.products: list[tuple[str, str]] = []
        self.lookups: list[str] = []
        self.out_axes: set[int] = set()


def _layer(graph: onnx.GraphProto, weight: str, uses: _Uses, alive: set[str]) -> Layer:
    products = tuple(output for output, _ in uses.products)
    inputs = tuple(value for _, value in uses.products)
    kind = "tied" if products and uses.lookups else "linear" if products else "embedding"
    return Layer(
        name=weight.removeprefix("model.").removesuffix(".weight"),
        weight=weight,
        kind=kind,
        products=products,
        inputs=inputs,
        lookups=tuple(uses.lookups),
        out_axis=uses.out_axes.copy().pop(),
        head=bool(products) and all(_ends_the_graph(graph, output) for output in products),
        quantizable=all(value in alive for value in (*inputs, *uses.lookups)),
    )


def _is_constant(name: str, stored: set[str], turned: Mapping[str, str]) -> bool:
    return name in stored or name in turned


def _transposes(node: onnx.NodeProto) -> bool:
    """True for a Gemm that reads its second operand transposed."""
    return any(item.name == "transB" and item.i for item in node.attribute)


def _axis(node: onnx.NodeProto) -> int:
    return next((item.i for item in node.attribute if item.name == "axis"), 0)


def _depends_on_canvas(graph: onnx.GraphProto, roles: Mapping[str, str]) -> set[str]:
    """Names of all values computed from the canvas (from any input, in a graph without one)."""
    given = {item.name for item in graph.input}
    alive = {name for name in given if roles.get(name) == CANVAS_ROLE} or given
    for node in graph.node:
        # A shape is not what the canvas holds.
        if node.op_type != "Shape" and alive.intersection(node.input):
            alive.update(node.output)
    return alive


def _ends_the_graph(graph: onnx.GraphProto, value: str) -> bool:
    """True if every path from a value ends at an output before another product or softmax."""
    users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)
    outputs = {item.name for item in graph.output}
    pending, reached = [value], False
    while pending:
        name = pending.pop()
        reached = reached or name in outputs
        for node in users[name]:
            if node.op_type in _BREAKS:
                return False
            pending.extend(node.output)
    return reached
