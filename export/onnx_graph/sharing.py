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

from .outside import Arrays, add_stub

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


def share_between(traced: Mapping[str, tuple[onnx.ModelProto, Arrays]]) -> None:
    """Stores a matrix as rows where another graph looks such rows up; in place.

    Args:
        traced: By graph name: models, and their large weights as views of parameters.
    """
    homes: dict[int, tuple[str, np.ndarray]] = {}
    for model, arrays in traced.values():
        gathered = {node.input[0] for node in model.graph.node if node.op_type == "Gather"}
        homes |= {address(arrays[name]): (name, arrays[name]) for name in gathered & set(arrays)}
    for model, arrays in traced.values():
        for name in sorted(arrays):
            home, rows = homes.get(address(arrays[name]), ("", arrays[name]))
            if not home or home in arrays or arrays[name].shape != rows.shape[::-1]:
                continue
            kept = f"{home}.rows" if home == name else home
            _turn(model, name, kept)
            add_stub(model.graph, kept, rows)
            del arrays[name]
            arrays[kept] = rows


def _turn(model: onnx.ModelProto, name: str, home: str) -> None:
    """Makes a matrix the transpose of an initialiser of its graph, in place."""
    turn = onnx.helper.make_node("Transpose", [home], [name], name=name, perm=[1, 0])
    kept = [item for item in model.graph.initializer if item.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.node.insert(0, turn)
