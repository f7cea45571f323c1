"""From a family's `ExportGraph` to the manifest's `GraphSpec`s: symbols made numbers.

Knows no family: shapes come as integers and the symbols "block" and "context".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..runtime.errors import ConfigError
from ..runtime.manifest import GraphSpec, TensorSpec
from ..train.families.base import ExportGraph, GraphTensor

WHOLE_CANVAS_CONTEXT = 8
"""Context rows of the whole-canvas shape: none is ever valid, but TensorRT takes no empty tensor,
and eight rows keep its alignment."""
WHOLE_CANVAS = "full"
"""How options call the block size that is the whole canvas."""
CAUSAL_BLOCK = 1
"""Causal models decode token by token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One static shape of a graph."""

    block: int
    context: int


def choose_shapes(
    *,
    blocks: Sequence[int],
    contexts: Sequence[int],
    max_position: int,
    causal: bool = False,
    canvas: bool = False,
    splits: bool = False,
) -> tuple[Shape, ...]:
    """Lists the shapes that a bundle offers, smallest first.

    Args:
        blocks: Block sizes asked for.
        contexts: Context buckets asked for, in positions.
        max_position: Positions that the model was trained for.
        causal: Adds the shape for one token at a time.
        canvas: Adds the whole canvas (block = max_position), which sees no context.
        splits: Adds twice each block size, at which a graph with an input `split` stores a finished
            block and begins the next in one run.

    Raises:
        ConfigError: A size is not positive, or larger than the model was trained for.
    """
    for option, sizes in (("--block", blocks), ("--context", contexts)):
        for size in sizes:
            if not 1 <= size <= max_position:
                raise ConfigError(
                    f"{option} {size} must be from 1 to {max_position}, the number of positions "
                    "that the checkpoint was trained for"
                )
    extra = {CAUSAL_BLOCK} if causal else set()
    if splits:
        extra |= {2 * block for block in blocks if 2 * block <= max_position}
    wanted = sorted({*blocks, *extra})
    shapes = [Shape(block=b, context=c) for c in sorted(set(contexts)) for b in wanted]
    if canvas:
        shapes.append(Shape(block=max_position, context=WHOLE_CANVAS_CONTEXT))
    return tuple(shapes)


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
