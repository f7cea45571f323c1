"""An ONNX graph and its weights as two members: the tensors lie outside, in one aligned file.

Alignment lets ONNX Runtime and TensorRT map the file and use tensors where they lie.
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

import onnx
from onnx import TensorProto
from onnx.external_data_helper import set_external_data

MIN_BYTES = 1024
"""Smaller tensors stay in the graph."""
ALIGNMENT = 64
PAGE = 4096
"""Alignment of tensors of a page or more."""


def split_weights(model: onnx.ModelProto, folder: Path, name: str) -> dict[str, Path]:
    """Writes `graphs/<name>.onnx` and `graphs/<name>.weights` under `folder`.

    Args:
        model: Complete; its tensors are moved out of it, in place.
        folder: Existing folder.
        name: Of the graph.

    Returns:
        Member name → file.
    """
    members = {f"graphs/{name}.{end}": folder / f"{name}.{end}" for end in ("onnx", "weights")}
    graph_path, weights_path = members.values()
    location = PurePosixPath(list(members)[1]).name
    known: dict[tuple[str, int], tuple[int, int]] = {}
    with weights_path.open("wb") as out:
        for item in model.graph.initializer:
            if not item.HasField("raw_data") or len(item.raw_data) < MIN_BYTES:
                continue
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
    graph_path.write_bytes(model.SerializeToString(deterministic=True))
    return members
