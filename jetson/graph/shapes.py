"""Shapes of every value of a graph, once named dimensions are numbers. Knows no costs.

Values that are small and known (shapes, axes, index ranges) are computed along the way, because
later shapes depend on them. Operators are those that export admits; another one is an error, not a
guess.

Source: the ONNX operator reference, opset 20.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...runtime.errors import BundleError, brief
from .onnx_graph import ITEM_BYTES, Graph, Node
from .shape_rules import RULES, VALUES, Result, shape_of

MAX_KNOWN = 1 << 16
"""Values of more items than this are not computed, only their shapes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One tensor of a graph at fixed dimensions."""

    shape: tuple[int, ...]
    dtype: str
    known: np.ndarray | None = None
    """What it holds, where that follows from shapes and small constants alone."""
    constant: bool = False
    """Made of weights and shapes alone: the same in every run."""
    stored: bool = False
    """An initialiser itself."""

    @property
    def items(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return int(self.items * ITEM_BYTES[self.dtype])


def infer(graph: Graph, sizes: Mapping[str, int]) -> dict[str, Value]:
    """Returns every value of a graph by name.

    Args:
        sizes: A number for each symbol, {"rows": 32, "context": 256}.

    Raises:
        BundleError: An operator that forecasts do not know, or shapes that contradict each other.
    """
    values: dict[str, Value] = {}
    for item in graph.initialisers.values():
        values[item.name] = Value(
            shape=item.shape, dtype=item.dtype, known=item.value, constant=True, stored=True
        )
    for port in graph.inputs:
        shape = tuple(sizes[size] if isinstance(size, str) else size for size in port.shape)
        values[port.name] = Value(shape=shape, dtype=port.dtype)
    for node in graph.nodes:
        try:
            _run(node, values)
        except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
            raise BundleError(
                f"no forecast can be made: the graph's {node.op} {node.name!r} is not understood "
                f"({type(error).__name__}: {brief(error, 80)}); export it with this version"
            ) from error
    return values


def _run(node: Node, values: dict[str, Value]) -> None:
    given = [values[name] if name else None for name in node.inputs]
    if node.op not in RULES:
        raise KeyError(f"operator {node.op}")
    results = RULES[node.op](node, given)
    known = _known(node, given, results)
    constant = all(value is None or value.constant for value in given)
    if node.op == "Shape":
        constant = True
    for name, (shape, dtype), value in zip(node.outputs, results, known, strict=False):
        values[name] = Value(
            shape=tuple(int(size) for size in shape),
            dtype=dtype,
            known=value,
            constant=constant or value is not None,
        )


def _known(node: Node, given: list[Value | None], results: list[Result]) -> list[np.ndarray | None]:
    """What the node's outputs hold, where that can be said."""
    nothing: list[np.ndarray | None] = [None] * len(results)
    if node.op == "Shape" and given[0] is not None:
        return [np.array(shape_of(node, given[0].shape), np.int64)]
    compute = VALUES.get(node.op)
    inputs = [None if value is None else value.known for value in given]
    if compute is None or any(
        value is not None and held is None for value, held in zip(given, inputs, strict=True)
    ):
        return nothing
    if any(np.prod(shape, dtype=np.int64) > MAX_KNOWN for shape, _ in results):
        return nothing
    held = compute(node, inputs)
    if held is None:
        return nothing
    ((shape, dtype),) = results
    return [np.asarray(held).astype(dtype).reshape(shape)]
