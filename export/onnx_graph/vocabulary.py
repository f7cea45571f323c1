"""Embeddings and heads too large for one allocation, cut along the vocabulary inside the graph.

    head       concat(x W_0, x W_1, …)
    lookup     of each part the row of the id, or some other row; then the part that has the id

A board may refuse one large buffer where several smaller ones are fine (`lint.MAX_TENSOR_BYTES`).
A tied matrix is cut once, for lookup and product. Knows no family: it reads the graph.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx_ir as ir

from ...calibration.graphs import array_of, constant, is_matrix, make_node, replace_node
from .lint import MAX_TENSOR_BYTES

MULTIPLE = 64
"""Rows of a part are a multiple of it, so that kernels get even widths."""


def split_vocabulary(
    model: ir.Model, *, item_bytes: int, limit: int = MAX_TENSOR_BYTES
) -> tuple[str, ...]:
    """Cuts every matrix of a graph that would be too large, in place.

    Args:
        model: Float32, as traced.
        item_bytes: Bytes of an item as it is shipped: 4, or 2 where it is stored as float16.
        limit: Bytes of one tensor at most.

    Returns:
        Names of the matrices that were cut.
    """
    large = [
        value
        for value in model.graph.initializers.values()
        if is_matrix(value) and array_of(value).size * item_bytes > limit
    ]
    for value in large:
        _cut(model.graph, value, item_bytes, limit)
    return tuple(str(value.name) for value in large)


def _cut(graph: ir.Graph, value: ir.Value, item_bytes: int, limit: int) -> None:
    """Cuts one matrix, and rewrites what reads it."""
    array, name = array_of(value), str(value.name)
    readers = list(value.consumers())
    transposes = [node for node in readers if node.op_type == "Transpose"]
    lookups = [node for node in readers if node.op_type == "Gather"]
    axis = 0 if transposes or lookups else 1
    size = array.shape[axis]
    number = -(-array.size * item_bytes // limit)
    each = -(-size // number // MULTIPLE) * MULTIPLE
    edges = [*range(0, size, each), size]
    base = name.removesuffix(".weight")
    parts = [
        constant(
            graph,
            f"{base}.{place}.weight",
            array[start:stop] if axis == 0 else array[:, start:stop],
        )
        for place, (start, stop) in enumerate(pairwise(edges))
    ]
    products = [
        node
        for matrix in (value, *(node.outputs[0] for node in transposes))
        for node in matrix.consumers()
        if node.op_type == "MatMul"
    ]
    for node in products:
        replace_node(node, _multiply(node, parts, columns=axis == 1))
    for node in lookups:
        replace_node(node, _look_up(graph, node, parts, edges))
    graph.remove(transposes, safe=True)
    del graph.initializers[name]


def _multiply(node: ir.Node, parts: list[ir.Value], *, columns: bool) -> list[ir.Node]:
    """Returns one product per part, side by side."""
    made: list[ir.Node] = []
    outputs = []
    output = node.outputs[0].name
    for number, part in enumerate(parts):
        if not columns:
            made.append(
                make_node("Transpose", [part], f"{part.name}.{output}.columns", perm=[1, 0])
            )
            part = made[-1].outputs[0]
        made.append(make_node("MatMul", [node.inputs[0], part], f"{output}.{number}"))
        outputs.append(made[-1].outputs[0])
    return [*made, make_node("Concat", outputs, str(output), axis=-1)]


def _look_up(
    graph: ir.Graph, node: ir.Node, parts: list[ir.Value], edges: list[int]
) -> list[ir.Node]:
    """Returns nodes that read the rows of the part that each id lies in."""
    ids, output = node.inputs[1], str(node.outputs[0].name)
    made: list[ir.Node] = []

    def add(op: str, inputs: list[ir.Value | None], name: str, **attributes: int) -> ir.Value:
        made.append(make_node(op, inputs, name, **attributes))
        return made[-1].outputs[0]

    zero = constant(graph, f"{output}.zero", np.array(0, np.int32))
    axis = constant(graph, f"{output}.axis", np.array([-1], np.int64))
    found: ir.Value | None = None
    for number, part in enumerate(parts):
        start, stop = edges[number], edges[number + 1]
        mark = f"{output}.{number}"
        first = constant(graph, f"{mark}.first", np.array(start, np.int32))
        last = constant(graph, f"{mark}.last", np.array(stop - start - 1, np.int32))
        offset = add("Sub", [ids, first], f"{mark}.from")
        above = add("Max", [offset, zero], f"{mark}.above")
        row = add("Min", [above, last], f"{mark}.row")
        rows = add("Gather", [part, row], f"{mark}.rows", axis=0)
        if found is None:
            found = rows
            continue
        inside = add("GreaterOrEqual", [ids, first], f"{mark}.inside")
        inside = add("Unsqueeze", [inside, axis], f"{mark}.inside.rows")
        name = output if number == len(parts) - 1 else f"{mark}.so.far"
        found = add("Where", [inside, rows, found], name)
    return made
