"""Weights stored as float16, arithmetic left as it is: half the bytes on disk.

Each large float32 matrix becomes a float16 initialiser and a Cast to float32. ONNX Runtime folds
the Cast while it loads, so its CPU kernels compute in float32 on rounded weights: same speed and
memory as fp32. Inputs, outputs, norm weights and biases stay float32. `typed.py` is the
other form, for GPUs: arithmetic in float16.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ...runtime.errors import ConfigError

MIN_ITEMS = 4096
"""Smaller tensors (norm weights, tables) stay float32."""
_MOVES_ONLY = ("Gather", "Transpose")
"""Ops that only move values: the Cast stands behind them, on what they let through."""


def store_fp16(model: onnx.ModelProto) -> int:
    """Turns large float32 matrices into float16 ones with Casts, in place.

    Returns:
        How many tensors were turned.

    Raises:
        ConfigError: A weight is beyond float16's range.
    """
    graph = model.graph
    turned: dict[str, str] = {}
    for item in graph.initializer:
        if item.data_type != TensorProto.FLOAT or len(item.dims) < 2:
            continue
        array = numpy_helper.to_array(item)
        if array.size < MIN_ITEMS:
            continue
        if float(np.abs(array).max()) > float(np.finfo(np.float16).max):
            raise ConfigError(
                f"weight {item.name} is beyond float16's range of 65504: export with "
                "--precision fp32"
            )
        narrow = f"{item.name}.fp16"
        turned[item.name] = narrow
        item.CopyFrom(numpy_helper.from_array(array.astype(np.float16), narrow))
    _insert_casts(graph, turned)
    return len(turned)


def _insert_casts(graph: onnx.GraphProto, turned: dict[str, str]) -> None:
    """Puts a Cast to float32 before each use of a turned tensor, or behind a mere move; in place.

    `turned` maps names as their users know them to the float16 tensors.
    """
    nodes: list[onnx.NodeProto] = []
    cast: set[str] = set()
    for node in graph.node:
        if node.op_type in _MOVES_ONLY and node.input[0] in turned:
            name = node.output[0]
            node.input[0] = turned[node.input[0]]
            node.output[0] = f"{name}.fp16"
            nodes.append(node)
            nodes.append(_cast(node.output[0], name))
            continue
        for name in node.input:
            if name in turned and name not in cast:
                nodes.append(_cast(turned[name], name))
                cast.add(name)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _cast(source: str, target: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}.cast", to=TensorProto.FLOAT)
