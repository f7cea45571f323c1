"""Matrices that stand in two orientations, brought into one, so that their bytes are stored once.

Tied embeddings come out of the exporter as rows, which a lookup reads, and as columns, which a
product reads; the latter may be in another graph, which is stored over the same file of weights.
ONNX Runtime folds the Transpose that takes their place while it loads, TensorRT into its kernel's
layout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

SHARED_BYTES = 1 << 16
"""Initialisers from this size on are compared with each other and stored once."""


def share_transposed(model: onnx.ModelProto, arrays: Mapping[str, np.ndarray]) -> None:
    """Replaces a matrix that is the transpose of a looked-up one by a Transpose node; in place.

    Args:
        model: As traced.
        arrays: Its large weights: views of parameters, so that one memory is one matrix.
    """
    gathered = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
    for name in sorted(arrays):
        for home in sorted(gathered & set(arrays)):
            array, other = arrays[name], arrays[home]
            if name == home or array.ndim != 2 or array.shape != other.shape[::-1]:
                continue
            if address(array) == address(other):
                _turn(model, name, home)
                break


def address(array: np.ndarray) -> int:
    """Gives where an array's first item lies."""
    return array.__array_interface__["data"][0]


def share_between(models: Mapping[str, onnx.ModelProto]) -> None:
    """Stores a matrix as rows where another graph looks such rows up; in place."""
    homes: dict[str, onnx.TensorProto] = {}
    for model in models.values():
        homes |= _looked_up(model, _large_matrices(model))
    for model in models.values():
        large = _large_matrices(model)
        for name in sorted(large):
            home = _home_of(large[name], homes)
            if home is not None and home not in large:
                rows = f"{name}.rows" if name == home else home
                stored = model.graph.initializer.add()
                stored.CopyFrom(homes[home])
                stored.name = rows
                _turn(model, name, rows)


def _large_matrices(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The matrices worth looking at, by name; their bytes are not touched."""
    return {
        item.name: item
        for item in model.graph.initializer
        if len(item.dims) == 2
        and item.data_type == onnx.TensorProto.FLOAT
        and 4 * math.prod(item.dims) >= SHARED_BYTES
    }


def _looked_up(
    model: onnx.ModelProto, large: Mapping[str, onnx.TensorProto]
) -> dict[str, onnx.TensorProto]:
    gathered = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
    return {name: large[name] for name in sorted(gathered & set(large))}


def _home_of(item: onnx.TensorProto, homes: Mapping[str, onnx.TensorProto]) -> str | None:
    """Names the looked-up matrix that this one is the transpose of."""
    for name, home in homes.items():
        if item.name == name or list(item.dims) != list(home.dims)[::-1]:
            continue
        if np.array_equal(numpy_helper.to_array(item), numpy_helper.to_array(home).T):
            return name
    return None


def _turn(model: onnx.ModelProto, name: str, home: str) -> None:
    """Makes a matrix the transpose of an initialiser of its graph, in place."""
    turn = onnx.helper.make_node("Transpose", [home], [name], name=name, perm=[1, 0])
    kept = [item for item in model.graph.initializer if item.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.node.insert(0, turn)
