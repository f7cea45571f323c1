"""Shapes of products: rules as in `shape_rules.py`, for the operators that multiply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .onnx_graph import Node

Result = tuple[tuple[int, ...], str]
"""Shape and dtype."""


def mat_mul(node: Node, given: Sequence[Any]) -> list[Result]:
    """Products of matrices, batches broadcast."""
    a, b = given[0].shape, given[1].shape
    left, right = (1, *a) if len(a) == 1 else a, (*b, 1) if len(b) == 1 else b
    if left[-1] != right[-2]:
        raise ValueError(f"{a} times {b}")
    shape = [*np.broadcast_shapes(left[:-2], right[:-2]), left[-2], right[-1]]
    if len(b) == 1:
        del shape[-1]
    if len(a) == 1:
        del shape[-2 if len(b) > 1 else -1]
    return [(tuple(shape), given[0].dtype)]


def gemm(node: Node, given: Sequence[Any]) -> list[Result]:
    """Products of two matrices, either turned."""
    rows = given[0].shape[1 if node.attributes.get("transA", 0) else 0]
    columns = given[1].shape[0 if node.attributes.get("transB", 0) else 1]
    return [((rows, columns), given[0].dtype)]


def einsum_sizes(equation: str, shapes: Sequence[tuple[int, ...]]) -> tuple[dict[str, int], str]:
    """Returns the size of each index of an equation without ellipsis, and the output's indices."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    sizes = {
        index: size
        for term, shape in zip(terms, shapes, strict=True)
        for index, size in zip(term, shape, strict=True)
    }
    letters = left.replace(",", "")
    implied = "".join(sorted(index for index in sizes if letters.count(index) == 1))
    return sizes, right if arrow else implied


def einsum(node: Node, given: Sequence[Any]) -> list[Result]:
    """Sums over the indices that the output leaves out."""
    sizes, right = einsum_sizes(node.attributes["equation"], [value.shape for value in given])
    return [(tuple(sizes[index] for index in right), given[0].dtype)]


def conv(node: Node, given: Sequence[Any]) -> list[Result]:
    """Convolutions of any rank with explicit padding."""
    image, kernel = given[0].shape, given[1].shape
    rank = len(image) - 2
    if node.attributes.get("auto_pad", "NOTSET") != "NOTSET":
        raise ValueError("auto_pad")
    pads = node.attributes.get("pads") or (0,) * (2 * rank)
    strides = node.attributes.get("strides") or (1,) * rank
    dilations = node.attributes.get("dilations") or (1,) * rank
    space = [
        (image[2 + i] + pads[i] + pads[rank + i] - dilations[i] * (kernel[2 + i] - 1) - 1)
        // strides[i]
        + 1
        for i in range(rank)
    ]
    return [((image[0], kernel[0], *space), given[0].dtype)]


def mat_mul_integer(node: Node, given: Sequence[Any]) -> list[Result]:
    """As mat_mul, of bytes into int32."""
    return [(mat_mul(node, given)[0][0], "int32")]
