"""The layers of a graph that can be quantised, and the rounding of their matrices.

A layer is a product with a constant matrix, or an embedding. All forms name layers as this module
finds them, and a recipe is keyed by these names. Knows no family: it reads the graph, and the roles
of its inputs.

Attention products have no constant operand, so they are never among them. A layer that does not
depend on the canvas (a timestep's embedding, the modulation computed from it) is found but not
`quantizable`: it is small, and an error there shifts every position at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from .graphs import is_matrix
from .grids import GROUP, LEAST_HALF_STEP

CANVAS_ROLE = "canvas"
PRODUCTS = frozenset(("MatMul", "Gemm"))
_BREAKS = PRODUCTS | {"Softmax", "ReduceMean", "LayerNormalization"}
"""What follows one of these belongs to another layer."""
PRECISIONS = ("int4", "int8", "int8-weight", "float")
"""int4: weights on a grid (on a CPU with activations int8 by groups); int8: weights and
activations; int8-weight: stored as int8, computed in floating point."""
WEIGHT_LIMIT = 127
"""Largest integer of a weight, so that -w is one too."""
LEAST_STEP = 1e-12
"""Of a channel of zeros."""
FLOAT16_LIMIT = 65504.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightLayer:
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
    """True when only elementwise operators lie between it and the graph's outputs."""
    quantizable: bool
    num_inputs: int
    """Input channels of the product (columns of an embedding)."""

    def by_channel(self, matrix: np.ndarray) -> np.ndarray:
        """Returns the stored matrix as (input channels, outputs)."""
        return matrix if self.out_axis == 1 else matrix.T

    @property
    def precisions(self) -> tuple[str, ...]:
        """What a recipe may ask for, most compressed first."""
        if not self.quantizable:
            return ("float",)
        if self.kind == "embedding":
            return ("int8-weight", "float")
        return PRECISIONS if self.fits_grid else PRECISIONS[1:]

    @property
    def fits_grid(self) -> bool:
        """Whether it can be int4: a product's own matrix, whose inputs make whole groups."""
        return self.kind == "linear" and self.quantizable and self.num_inputs % GROUP == 0


@dataclass(slots=True)
class _Uses:
    """What reads one matrix."""

    products: list[ir.Node] = field(default_factory=list)
    lookups: list[ir.Node] = field(default_factory=list)
    out_axes: set[int] = field(default_factory=set)


def find_layers(model: ir.Model, roles: Mapping[str, str]) -> tuple[WeightLayer, ...]:
    """Lists the layers of a floating-point graph, in the graph's order.

    Args:
        model: As traced: float32, nothing quantised yet.
    """
    seen: dict[ir.Value, _Uses] = {}
    for node in model.graph:
        if node.op_type in PRODUCTS and _stored(node.inputs[0]) is None:
            weight = _stored(node.inputs[1])
            if weight is not None:
                uses = seen.setdefault(weight, _Uses())
                uses.products.append(node)
                turned = weight is not node.inputs[1]
                uses.out_axes.add(0 if turned != bool(_integer(node, "transB")) else 1)
        elif node.op_type == "Gather" and _integer(node, "axis") == 0:
            weight = node.inputs[0]
            if weight is not None and is_matrix(weight):
                uses = seen.setdefault(weight, _Uses())
                uses.lookups.append(node)
                uses.out_axes.add(0)
    alive = _depends_on_canvas(model.graph, roles)
    return tuple(
        _layer(weight, uses, alive) for weight, uses in seen.items() if len(uses.out_axes) == 1
    )


def _layer(weight: ir.Value, uses: _Uses, alive: set[ir.Value | None]) -> WeightLayer:
    name, out_axis = str(weight.name), next(iter(uses.out_axes))
    assert weight.const_value is not None
    inputs = [node.inputs[0] for node in uses.products]
    lookups = [node.outputs[0] for node in uses.lookups]
    return WeightLayer(
        name=name.removeprefix("model.").removesuffix(".weight"),
        weight=name,
        kind="embedding" if not inputs else "tied" if lookups else "linear",
        products=tuple(str(node.outputs[0].name) for node in uses.products),
        inputs=tuple(str(value.name) for value in inputs if value is not None),
        lookups=tuple(str(value.name) for value in lookups),
        out_axis=out_axis,
        head=bool(inputs) and all(_ends_the_graph(node.outputs[0]) for node in uses.products),
        quantizable=all(value in alive for value in (*inputs, *lookups)),
        num_inputs=weight.const_value.numpy().shape[1 - out_axis],
    )


def _stored(value: ir.Value | None) -> ir.Value | None:
    """Returns the matrix that a product reads, directly or through a Transpose."""
    if is_matrix(value):
        return value
    maker = value.producer() if value is not None else None
    if maker is not None and maker.op_type == "Transpose" and is_matrix(maker.inputs[0]):
        return maker.inputs[0]
    return None


def _integer(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else 0


def _depends_on_canvas(graph: ir.Graph, roles: Mapping[str, str]) -> set[ir.Value | None]:
    """Returns all values computed from the canvas (from any input, in a graph without one)."""
    given = set(graph.inputs)
    alive: set[ir.Value | None] = {
        value for value in given if roles.get(str(value.name)) == CANVAS_ROLE
    } or {*given}
    for node in graph:
        # A shape does not depend on the canvas's content.
        if node.op_type != "Shape" and alive.intersection(node.inputs):
            alive.update(node.outputs)
    return alive


def _ends_the_graph(value: ir.Value) -> bool:
    """True if every path from a value ends at an output before another product or softmax."""
    pending, reached = [value], False
    while pending:
        found = pending.pop()
        reached = reached or found.is_graph_output()
        for node in found.consumers():
            if node.op_type in _BREAKS:
                return False
            pending.extend(node.outputs)
    return reached


def channel_steps(array: np.ndarray, axis: int, *, half: bool = False) -> np.ndarray:
    """Returns one symmetric step per channel of a matrix, (channels,) float32.

    Args:
        array: (rows, columns) float32.
        axis: Which of the two counts channels.
        half: Whether steps must be exact in float16, which TensorRT wants beside float16 values.
    """
    steps = np.maximum(array.max(axis=1 - axis), -array.min(axis=1 - axis)) / WEIGHT_LIMIT
    if half:
        # Rounded up to float16, a step of the limit itself would be too much 127 times.
        most = FLOAT16_LIMIT / (WEIGHT_LIMIT + 1)
        steps = np.clip(steps, LEAST_HALF_STEP, most).astype(np.float16)
    return np.maximum(steps, LEAST_STEP).astype(np.float32)


def without_channels(array: np.ndarray, places: Sequence[int], axis: int) -> np.ndarray:
    """Returns a matrix with some of its rows or columns zero, copied if there are any."""
    if not places:
        return array
    made = array.copy()
    made[(slice(None),) * axis + (list(places),)] = 0
    return made


def round_matrix(array: np.ndarray, steps: np.ndarray, axis: int) -> np.ndarray:
    """Rounds a matrix to int8 multiples of its channels' steps, within [-127, 127]."""
    rounded = np.rint(array / np.expand_dims(steps, 1 - axis))
    return np.clip(rounded, -WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.int8)
