"""How large each value of a graph gets on the canvases: what float16 cannot hold, and what is NaN.

The floating-point graph is run with the values as further outputs, one canvas after the other, so
memory is that of one run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx

from ..runtime.engines.onnxruntime import import_backend
from ..runtime.errors import CalibrationError
from .canvases import Canvas

FLOAT16_LIMIT = 65504.0
HEADROOM = 2.0
"""The canvases are a sample: values of half of float16's range count as beyond it."""
Progress = Callable[[int, int], None]


def largest_values(
    model: onnx.ModelProto,
    canvases: Sequence[Canvas],
    names: Iterable[str],
    progress: Progress = lambda done, total: None,
) -> dict[str, dict[int, float]]:
    """Measures values of a float32 graph.

    Args:
        model: The graph.
        canvases: Of this graph.
        names: Computed values, in the graph's order.
        progress: Told after every canvas.

    Returns:
        The largest magnitude of each value, by the mask ratio's decile.

    Raises:
        CalibrationError: A value is NaN or infinite on a canvas; names the first such.
    """
    wanted = list(names)
    session = _session(model, wanted)
    found: dict[str, dict[int, float]] = {name: {} for name in wanted}
    for number, canvas in enumerate(canvases):
        outputs = session.run(wanted, dict(canvas.inputs))
        for name, array in zip(wanted, outputs, strict=True):
            largest = float(np.abs(array).max(initial=0.0))
            if not np.isfinite(largest):
                raise CalibrationError(
                    f"graph {canvas.graph} computes NaN or infinity at {_place(model, name)} on a "
                    f"canvas ({canvas.source}, mask ratio {canvas.mask_ratio:.2f}): the "
                    "checkpoint's weights are unsound, train it again"
                )
            found[name][canvas.decile] = max(found[name].get(canvas.decile, 0.0), largest)
        progress(number + 1, len(canvases))
    return found


def beyond_float16(largest: Mapping[str, Mapping[int, float]]) -> tuple[str, ...]:
    """Returns the values that float16 cannot be trusted with, in the given order."""
    return tuple(
        name
        for name, deciles in largest.items()
        if max(deciles.values(), default=0.0) * HEADROOM > FLOAT16_LIMIT
    )


def _session(model: onnx.ModelProto, names: Sequence[str]):
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    outputs = {item.name for item in probe.graph.output}
    probe.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in outputs
    )
    backend = import_backend()
    options = backend.SessionOptions()
    options.log_severity_level = 4
    return backend.InferenceSession(
        probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _place(model: onnx.ModelProto, name: str) -> str:
    """Names a value by the weight that its node reads, if it reads one."""
    weights = {item.name for item in model.graph.initializer if len(item.dims)}
    for node in model.graph.node:
        if name in node.output:
            near = next((item for item in node.input if item in weights), None)
            return f"{node.op_type} of {near}" if near else f"{node.op_type} {name}"
    return name
