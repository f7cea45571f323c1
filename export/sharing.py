"""Matrices that stand in two orientations, brought into one, so that their bytes are stored once.

Tied embeddings come out of the exporter as rows, which a lookup reads, and as columns, which a
product reads; the latter may be in another graph, which is stored over the same file of weights.
ONNX Runtime folds the Transpose that takes their place while it loads, TensorRT into its kernel's
layout.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

SHARED_BYTES = 1 << 16
"""Initialisers from this size on are compared with each other and stored once."""


def share_transposed(model: onnx.ModelProto) -> None:
    """Replaces a matrix that is the transpose of a looked-up one by a Transpose node; in place."""
    large = _large_matrices(model)
    homes = _looked_up(model, large)
    for name in sorted(large):
        home = _home_of(name, large[name], homes)
        if home is not None:
            _turn(model, name, home)


def share_between(models: Mapping[str, onnx.ModelProto]) -> None:
    """Stores a matrix as rows where another graph looks such rows up; in place."""
    homes: dict[str, np.ndarray] = {}
    for model in models.values():
        homes |= _looked_up(model, _large_matrices(model))
    for model in models.values():
        large = _large_matrices(model)
        for name in sorted(large):
            home = _home_of(name, large[name], homes)
            if home is not None and home not in large:
                rows = f"{name}.rows" if name == home else home
                model.graph.initializer.append(numpy_helper.from_array(homes[home], rows))
                _turn(model, name, rows)


def _large_matrices(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    arrays = {
        item.name: numpy_helper.to_array(item)
        for item in model.graph.initializer
        if len(item.dims) == 2
    }
    return {name: array for name, array in arrays.items() if array.nbytes >= SHARED_BYTES}


def _looked_up(model: onnx.ModelProto, large: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    gathered = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
    return {name: large[name] for name in sorted(gathered & set(large))}


def _home_of(name: str, array: np.ndarray, homes: Mapping[str, np.ndarray]) -> str | None:
    """Names the looked-up matrix that this one is the transpose of."""
    for home, other in homes.items():
        if name == home or array.shape != other.shape[::-1]:
            continue
        if array[0, 0] == other[0, 0] and np.array_equal(array, other.T):
            return home
    return None


def _turn(model: onnx.ModelProto, name: str, home: str) -> None:
    """Makes a matrix the transpose of an initialiser of its graph, in place."""
    turn = onnx.helper.make_node("Transpose", [home], [name], name=name, perm=[1, 0])
    kept = [item for item in model.graph.initializer if item.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.node.insert(0, turn)
