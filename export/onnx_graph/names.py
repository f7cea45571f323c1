"""Weights under the names of the parameters they are, so that plans and reports can be read.

The exporter folds transposes into constants and numbers them (`val_97`). A constant that holds a
parameter's values, as they are or transposed, gets that parameter's name back.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from .sharing import SHARED_BYTES, address


def name_weights(
    model: onnx.ModelProto, module: nn.Module, arrays: Mapping[str, np.ndarray]
) -> dict[str, str]:
    """Renames matrices of a traced graph after the module's parameters, in place.

    Args:
        model: As traced.
        module: What it was traced from.
        arrays: Large weights that stand outside the model, as views of the parameters.

    Returns:
        The new name of each that was renamed.
    """
    parameters = dict(module.named_parameters())
    places = {address(tensor.detach().numpy()): name for name, tensor in parameters.items()}
    names = {}
    for name, array in arrays.items():
        known = places.get(address(array))
        if known is not None and name not in parameters:
            names[name] = known
    names |= _small_names(model, parameters, {*arrays, *names.values()})
    for item in model.graph.initializer:
        item.name = names.get(item.name, item.name)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
    return names


def _small_names(
    model: onnx.ModelProto, parameters: Mapping[str, torch.Tensor], taken: Collection[str]
) -> dict[str, str]:
    """Finds the parameters of matrices that stand inside the model, by their values."""
    given = {*taken, *(item.name for item in model.graph.initializer)}
    known: dict[str, list[str]] = defaultdict(list)
    for name, tensor in parameters.items():
        if tensor.ndim == 2 and name not in given and tensor.nbytes < SHARED_BYTES:
            array = tensor.detach().cpu().numpy()
            # A square symmetric matrix would be found twice under one key, hence the set.
            for key in {_key(array), _key(array.T)}:
                known[key].append(name)
    names: dict[str, str] = {}
    for item in model.graph.initializer:
        if len(item.dims) != 2 or item.name in parameters or item.name in taken:
            continue
        # Equal parameters (untrained, all zero) take their names in the graph's order.
        free = [name for name in known[_key(numpy_helper.to_array(item))] if name not in given]
        if free:
            names[item.name] = free[0]
            given.add(free[0])
    return names


def _key(array: np.ndarray) -> str:
    data = np.ascontiguousarray(array)
    return f"{data.shape}{data.dtype}{hashlib.sha256(data.tobytes()).hexdigest()}"
