"""What the few operators compute that shapes are made with. Knows no graph.

Each takes the node and its inputs' contents and gives its one output's; the caller gives that its
shape and dtype.

Source: the ONNX operator reference, opset 20.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .onnx_graph import Node


def constant_value(node: Node, inputs: Sequence[Any]) -> np.ndarray | None:
    """What a Constant holds; None where it was too large to keep."""
    for key, dtype in (
        ("value_int", np.int64),
        ("value_ints", np.int64),
        ("value_float", np.float32),
        ("value_floats", np.float32),
    ):
        if key in node.attributes:
            return np.array(node.attributes[key], dtype)
    return node.attributes["value"].value


def _divide(node: Node, inputs: Sequence[Any]) -> np.ndarray:
    a, b = inputs
    # ONNX's integer division cuts towards zero.
    return np.trunc(np.true_divide(a, b)) if np.asarray(a).dtype.kind in "iu" else a / b


def _slice_value(node: Node, inputs: Sequence[Any]) -> np.ndarray:
    data, starts, ends, *rest = inputs
    axes = rest[0].reshape(-1).tolist() if rest and rest[0] is not None else range(starts.size)
    steps = rest[1].reshape(-1).tolist() if len(rest) > 1 and rest[1] is not None else None
    for place, axis in enumerate(axes):
        window = slice(
            int(starts.reshape(-1)[place]),
            int(ends.reshape(-1)[place]),
            None if steps is None else steps[place],
        )
        data = data[(slice(None),) * (axis % data.ndim) + (window,)]
    return data


def _filled_value(node: Node, inputs: Sequence[Any]) -> np.ndarray:
    value = node.attributes.get("value")
    fill = 0.0 if value is None else value.value.reshape(-1)[0]
    return np.full(tuple(inputs[0].reshape(-1).tolist()), fill)


# What a value's shape does not change is reshaped by the caller.
VALUES: Mapping[str, Callable[[Node, Sequence[Any]], Any]] = {
    "Add": lambda node, given: given[0] + given[1],
    "Cast": lambda node, given: given[0],
    "Concat": lambda node, given: np.concatenate(given, axis=node.attributes["axis"]),
    "Constant": constant_value,
    "ConstantOfShape": _filled_value,
    "Div": _divide,
    "Equal": lambda node, given: given[0] == given[1],
    "Expand": lambda node, given: given[0] * np.ones(given[1].reshape(-1).tolist(), given[0].dtype),
    "Gather": lambda node, given: np.take(given[0], given[1], node.attributes.get("axis", 0)),
    "Identity": lambda node, given: given[0],
    "Max": lambda node, given: np.maximum.reduce(given),
    "Min": lambda node, given: np.minimum.reduce(given),
    "Mul": lambda node, given: given[0] * given[1],
    "Neg": lambda node, given: -given[0],
    "Range": lambda node, given: np.arange(*(value.reshape(-1)[0] for value in given)),
    "Reshape": lambda node, given: given[0],
    "Slice": _slice_value,
    "Squeeze": lambda node, given: given[0],
    "Sub": lambda node, given: given[0] - given[1],
    "Unsqueeze": lambda node, given: given[0],
    "Where": lambda node, given: np.where(*given),
}
"""Operators that shapes are computed with."""
