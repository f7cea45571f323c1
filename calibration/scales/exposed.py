"""A float graph opened so that inner values come out: what ranges and extremes are read from.

One place for it, because a model's weights may be beyond the 2 GiB that one protobuf can have: the
copy with more outputs goes through a temporary folder, its tensors in a file beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx

from ...runtime.engines.onnxruntime import import_backend


def save_beside(model: onnx.ModelProto, path: Path) -> None:
    """Writes a model with its tensors in a file beside it; the given one stays as it is."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # saving moves the tensors out of the model it is given
    onnx.save(copy, str(path), save_as_external_data=True, location=f"{path.stem}.data")


def open_exposed(model: onnx.ModelProto, names: Iterable[str], threads: int = 1) -> Any:
    """Opens an ONNX Runtime session of a graph with more outputs.

    Args:
        model: Complete; it is not changed.
        names: Computed values to put out, beside the graph's own outputs.
        threads: CPU threads.
    """
    backend = import_backend()
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    known = {item.name for item in shown.graph.output}
    shown.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name)
        for name in dict.fromkeys(names)
        if name not in known
    )
    options = backend.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with TemporaryDirectory(prefix="dlm-calibrate-") as folder:
        path = Path(folder) / "exposed.onnx"
        save_beside(shown, path)
        return backend.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )


def in_order(model: onnx.ModelProto, names: Iterable[str]) -> list[str]:
    """Sorts values by when the graph computes them; its inputs come first."""
    made = (name for node in model.graph.node for name in node.output)
    place = {name: number for number, name in enumerate(made)}
    return sorted(dict.fromkeys(names), key=lambda name: place.get(name, -1))
