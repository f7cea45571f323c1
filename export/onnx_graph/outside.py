"""Large weights kept outside a graph while it is rewritten: stubs in it, arrays beside it.

A protobuf message frees nothing of what is taken out of it before it is freed as a whole, so a
matrix that is cut, renamed or dropped inside a model stays in memory. Outside it is a view of the
parameter that it was traced from, and one copy is made in the end, of what is then there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

PLACE = "left-out"
Arrays = dict[str, np.ndarray]
"""By initialiser name."""


def add_stub(graph: onnx.GraphProto, name: str, array: np.ndarray) -> None:
    """Adds an initialiser that has a type and a shape only."""
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    add_typed_stub(graph, name, kind, array.shape)


def add_typed_stub(graph: onnx.GraphProto, name: str, kind: int, shape: Sequence[int]) -> None:
    """As `add_stub`, for an ONNX data type and a shape."""
    stub = graph.initializer.add()
    stub.name, stub.data_type = name, kind
    stub.dims.extend(shape)
    stub.data_location = TensorProto.EXTERNAL
    entry = stub.external_data.add()
    entry.key, entry.value = "location", PLACE


def fill(model: onnx.ModelProto, arrays: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """Gives a model's stubs their bytes, in place, and returns it."""
    for item in model.graph.initializer:
        if item.name in arrays:
            item.ClearField("external_data")
            item.ClearField("data_location")
            item.raw_data = np.ascontiguousarray(arrays[item.name]).tobytes()
    return model
