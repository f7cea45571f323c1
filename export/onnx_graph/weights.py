"""ONNX graphs and their weights as members: the tensors are in one aligned file outside the graphs.

Alignment lets ONNX Runtime and TensorRT map the file and use tensors in place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir

MIN_BYTES = 1024
"""Smaller tensors stay in the graph."""
ALIGNMENT = 64
PAGE = 4096
"""Alignment of tensors of a page or more."""


def split_weights(
    models: Mapping[str, ir.Model],
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Path]:
    """Writes `graphs/<name>.onnx` for each graph, and one file of weights for all of them, which is
    named after the first; tensors of equal bytes are stored once.

    Args:
        folder: Existing folder.

    Returns:
        Member name → file.
    """
    weights_path = folder / f"{next(iter(models))}.weights"
    members = {f"graphs/{weights_path.name}": weights_path}
    known: dict[tuple[str, ir.DataType], tuple[int, int]] = {}
    with weights_path.open("wb") as out:
        for name, model in models.items():
            stored = model.clone()
            items = stored.graph.initializers
            for number, value in enumerate(items.values()):
                progress(number, len(items))
                tensor = value.const_value
                if tensor is not None and tensor.nbytes >= MIN_BYTES:
                    value.const_value = _move(tensor, out, weights_path.name, known)
            path = folder / f"{name}.onnx"
            path.write_bytes(ir.to_proto(stored).SerializeToString(deterministic=True))
            members[f"graphs/{name}.onnx"] = path
    return members


def _move(
    tensor: ir.TensorProtocol,
    out: BinaryIO,
    location: str,
    known: dict[tuple[str, ir.DataType], tuple[int, int]],
) -> ir.ExternalTensor:
    """Writes a tensor's bytes into the file, unless they are there; returns where they are."""
    data = tensor.tobytes()
    key = (hashlib.sha256(data).hexdigest(), tensor.dtype)
    if key not in known:
        step = PAGE if len(data) >= PAGE else ALIGNMENT
        out.write(bytes(-out.tell() % step))
        known[key] = (out.tell(), len(data))
        out.write(data)
    offset, length = known[key]
    shape = ir.Shape(tensor.shape.numpy())
    return ir.ExternalTensor(
        location, offset, length, tensor.dtype, shape=shape, name=str(tensor.name)
    )
