"""Embeddings and heads too large for one allocation, cut along the vocabulary inside the graph.

    head       concat(x W_0, x W_1, …)
    lookup     of each part the row of the id, or some other row; then the part that has the id

A board may refuse one large buffer where several smaller ones are fine (`lint.MAX_TENSOR_BYTES`).
A tied matrix is cut once, for lookup and product. Knows no family: it goes by what reads a matrix.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .lint import MAX_TENSOR_BYTES
from .outside import Arrays, add_stub

MULTIPLE = 64
"""Rows of a part, so that kernels meet even widths."""


def split_vocabulary(
    model: onnx.ModelProto,
    arrays: Arrays | None = None,
    *,
    item_bytes: int,
    limit: int = MAX_TENSOR_BYTES,
) -> tuple[str, ...]:
    """Cuts every matrix of a graph that would be too large, in place.

    Args:
        model: Float32, as traced.
        arrays: Weights that stand outside it, in place; None: all are inside.
        item_bytes: What an item will take in the end: 4, or 2 where it is stored as float16.
        limit: Bytes of one tensor at most.

    Returns:
        Names of the matrices that were cut.
    """
    large = [
        item
        for item in model.graph.initializer
        if len(item.dims) == 2 and item.dims[0] * item.dims[1] * item_bytes > limit
    ]
    for item in large:
        _Cut(model.graph, item, item_bytes, limit).run({} if arrays is None else arrays)
    return tuple(item.name for item in large)


class _Cut:
    """One matrix and what reads it."""

    def __init__(
        self, graph: onnx.GraphProto, item: onnx.TensorProto, item_bytes: int, limit: int
    ) -> None:
        self._graph, self._item = graph, item
        users = [node for node in graph.node if item.name in node.input]
        self._turns = [node for node in users if node.op_type == "Transpose"]
        self._lookups = [node for node in users if node.op_type == "Gather"]
        turned = {node.output[0] for node in self._turns}
        self._products = [
            node
            for node in graph.node
            if node.op_type == "MatMul" and (node.input[1] in turned or node.input[1] == item.name)
        ]
        rows = bool(self._turns or self._lookups)
        self._axis = 0 if rows else 1
        size, other = item.dims[self._axis], item.dims[1 - self._axis]
        number = -(-size * other * item_bytes // limit)
        each = -(-size // number // MULTIPLE) * MULTIPLE
        self._edges = [*range(0, size, each), size]

    def run(self, arrays: Arrays) -> None:
        """Rewrites the graph, in place."""
        outside = arrays.pop(self._item.name, None)
        array = numpy_helper.to_array(self._item) if outside is None else outside
        base = self._item.name.removesuffix(".weight")
        parts = []
        for number, (start, stop) in enumerate(zip(self._edges, self._edges[1:], strict=False)):
            piece = array[start:stop] if self._axis == 0 else array[:, start:stop]
            name = f"{base}.{number}.weight"
            if outside is None:
                made = numpy_helper.from_array(np.ascontiguousarray(piece), name)
                self._graph.initializer.append(made)
            else:
                add_stub(self._graph, name, piece)
                arrays[name] = piece
            parts.append(name)
        instead: dict[str, list[onnx.NodeProto]] = {node.output[0]: [] for node in self._turns}
        instead |= {node.output[0]: self._look_up(node, parts) for node in self._lookups}
        instead |= {node.output[0]: self._multiply(node, parts) for node in self._products}
        nodes: list[onnx.NodeProto] = []
        for node in self._graph.node:
            nodes += instead.get(node.output[0], [node])
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        name = self._item.name
        place = next(i for i, item in enumerate(self._graph.initializer) if item.name == name)
        del self._graph.initializer[place]

    def _multiply(self, node: onnx.NodeProto, parts: list[str]) -> list[onnx.NodeProto]:
        """One product per part, side by side."""
        made, outputs = [], []
        output = node.output[0]
        for number, name in enumerate(parts):
            matrix = name
            if self._axis == 0:
                matrix = f"{name}.{output}.columns"
                made.append(_node("Transpose", [name], matrix, perm=[1, 0]))
            outputs.append(f"{output}.{number}")
            made.append(_node("MatMul", [node.input[0], matrix], outputs[-1]))
        return [*made, _node("Concat", outputs, output, axis=-1)]

    def _look_up(self, node: onnx.NodeProto, parts: list[str]) -> list[onnx.NodeProto]:
        """The rows of the part that each id lies in."""
        ids, output = node.input[1], node.output[0]
        made: list[onnx.NodeProto] = []
        chosen = ""
        for number, name in enumerate(parts):
            start, stop = self._edges[number], self._edges[number + 1]
            mark = f"{output}.{number}"
            first = self._constant(f"{mark}.first", np.array(start, np.int32))
            last = self._constant(f"{mark}.last", np.array(stop - start - 1, np.int32))
            zero = self._constant(f"{output}.zero", np.array(0, np.int32))
            made += [
                _node("Sub", [ids, first], f"{mark}.from"),
                _node("Max", [f"{mark}.from", zero], f"{mark}.above"),
                _node("Min", [f"{mark}.above", last], f"{mark}.row"),
                _node("Gather", [name, f"{mark}.row"], f"{mark}.rows", axis=0),
            ]
            if not chosen:
                chosen = f"{mark}.rows"
                continue
            axis = self._constant(f"{output}.axis", np.array([-1], np.int64))
            result = output if number == len(parts) - 1 else f"{mark}.so.far"
            made += [
                _node("GreaterOrEqual", [ids, first], f"{mark}.inside"),
                _node("Unsqueeze", [f"{mark}.inside", axis], f"{mark}.inside.rows"),
                _node("Where", [f"{mark}.inside.rows", f"{mark}.rows", chosen], result),
            ]
            chosen = result
        return made

    def _constant(self, name: str, array: np.ndarray) -> str:
        if not any(item.name == name for item in self._graph.initializer):
            self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name


def _node(op: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=output, **attributes)
