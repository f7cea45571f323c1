"""Weights under the names of the parameters they are, so that plans and reports can be read.

The exporter folds transposes into constants and numbers them (`val_97`). A constant that holds a
parameter's values, as they are or transposed, gets that parameter's name back.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict

import numpy as np
import onnx
from onnx import numpy_helper
from torch import nn


def name_weights(model: onnx.ModelProto, module: nn.Module) -> None:
    """Renames matrices of a traced graph after the module's parameters, in place."""
    taken = {item.name for item in model.graph.initializer}
    known: dict[str, list[str]] = defaultdict(list)
    for name, tensor in module.named_parameters():
        if tensor.ndim == 2 and name not in taken:
            array = tensor.detach().cpu().numpy()
            # A square symmetric matrix would be found twice under one key, hence the set.
            for key in {_key(array), _key(array.T)}:
                known[key].append(name)
    names: dict[str, str] = {}
    given: set[str] = set()
    for item in model.graph.initializer:
        if len(item.dims) != 2 or item.name in dict(module.named_parameters()):
            continue
        # Equal parameters (untrained, all zero) take their names in the graph's order.
        free = [name for name in known[_key(numpy_helper.to_array(item))] if name not in given]
        if free:
            names[item.name] = free[0]
            given.add(free[0])
    for item in model.graph.initializer:
        item.name = names.get(item.name, item.name)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)


def _key(array: np.ndarray) -> str:
    data = np.ascontiguousarray(array)
    return f"{data.shape}{data.dtype}{hashlib.sha256(data.tobytes()).hexdigest()}"
