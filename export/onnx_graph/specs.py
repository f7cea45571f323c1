"""From a family's `ExportGraph` to the manifest's `GraphSpec`s: symbols made numbers.

Knows no family: shapes come as integers and the symbols "block" and "context".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...runtime.bundle.manifest import GraphSpec, TensorSpec
from ...train.families.base import ExportGraph, GraphTensor
from ...train.families.shapes import Shape


def _numbers(tensor: GraphTensor, shape: Shape) -> TensorSpec:
    sizes = {"block": shape.block, "context": shape.context}
    return TensorSpec(
        name=tensor.name,
        dtype=tensor.dtype,
        shape=tuple(sizes[size] if isinstance(size, str) else size for size in tensor.shape),
        role=tensor.role,
    )


def graph_specs(
    graph: ExportGraph, shapes: Iterable[Shape], *, file: str, precision: str
) -> tuple[GraphSpec, ...]:
    """Returns the manifest's entry for each shape of one exported graph."""
    return tuple(
        GraphSpec(
            name=graph.name,
            file=file,
            batch=1,
            block=shape.block,
            context=shape.context,
            precision=precision,
            inputs=tuple(_numbers(tensor, shape) for tensor in graph.inputs),
            outputs=tuple(_numbers(tensor, shape) for tensor in graph.outputs),
        )
        for shape in shapes
    )


def symbols(tensor: GraphTensor) -> dict[int, Any]:
    """Returns {axis: symbol} of a tensor's symbolic axes."""
    return {axis: size for axis, size in enumerate(tensor.shape) if isinstance(size, str)}
