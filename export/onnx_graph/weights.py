"""ONNX graphs and their weights as members: the tensors lie outside, in one aligned file.

Alignment lets ONNX Runtime and TensorRT map the file and use tensors where they lie.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import onnx
from onnx import TensorProto
from onnx.external_data_helper import set_external_data

MIN_BYTES = 1024
"""Smaller tensors stay in the graph."""
ALIGNMENT = 64
PAGE = 4096
"""Alignment of tensors of a page or more."""


def split_weights(
    models: Mapping[str, onnx.ModelProto],
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Path]:
    """Writes `graphs/<name>.onnx` for each graph, and one file of weights for all of them, which is
    named after the first; tensors of equal bytes are stored once.

    Args:
        models: By graph name, complete; their tensors are moved out of them, in place.
        folder: Existing folder.
        progress: Told after every tensor.

    Returns:
        Member name → file.
    """
    weights_path = folder / f"{next(iter(models))}.weights"
    members = {f"graphs/{weights_path.name}": weights_path}
    known: dict[tuple[str, int], tuple[int, int]] = {}
    with weights_path.open("wb") as out:
        for name, model in models.items():
            for number, item in enumerate(model.graph.initializer):
                progress(number, len(model.graph.initializer))
                if item.HasField("raw_data") and len(item.raw_data) >= MIN_BYTES:
                    _move(item, out, weights_path.name, known)
            path = folder / f"{name}.onnx"
            path.write_bytes(model.SerializeToString(deterministic=True))
            members[f"graphs/{name}.onnx"] = path
    return members


def _move(
    item: onnx.TensorProto,
    out: BinaryIO,
    location: str,
    known: dict[tuple[str, int], tuple[int, int]],
) -> None:
    """Moves a tensor's bytes into the file, or points to where equal ones stand; in place."""
    data = item.raw_data
    key = (hashlib.sha256(data).hexdigest(), item.data_type)
    if key not in known:
        step = PAGE if len(data) >= PAGE else ALIGNMENT
        out.write(bytes(-out.tell() % step))
        known[key] = (out.tell(), len(data))
        out.write(data)
    offset, length = known[key]
    set_external_data(item, location, offset=offset, length=length)
    item.ClearField("raw_data")
    item.data_location = TensorProto.EXTERNAL
