"""How large each value of a graph gets on the canvases: what float16 cannot hold, and what is NaN.

The floating-point graph is run with the values as further outputs, one canvas after the other, so
memory is that of one run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ...runtime.errors import CalibrationError
from ..canvases.canvases import RecordedRun
from ..graphs import in_order, open_session, rank_of, values_of
from ..layers import FLOAT16_LIMIT, WeightLayer

HEADROOM = 2.0
"""The canvases are a sample: values of half of float16's range count as beyond it."""
Progress = Callable[[int, int], None]


def largest_values(
    model: ir.Model,
    canvases: Sequence[RecordedRun],
    names: Iterable[str],
    progress: Progress = lambda done, total: None,
) -> dict[str, dict[int, float]]:
    """Measures values of a float32 graph.

    Returns:
        The largest magnitude of each value, by the mask ratio's decile.

    Raises:
        CalibrationError: A value is NaN or infinite on a canvas; names the first such.
    """
    wanted = list(names)
    session = open_session(model, wanted)
    found: dict[str, dict[int, float]] = {name: {} for name in wanted}
    for number, canvas in enumerate(canvases):
        outputs = session.run(wanted, dict(canvas.inputs))
        for name, array in zip(wanted, outputs, strict=True):
            largest = float(np.abs(array).max(initial=0.0))
            if not np.isfinite(largest):
                raise unsound(f"{_place(model, name)} gives", canvas)
            found[name][canvas.decile] = max(found[name].get(canvas.decile, 0.0), largest)
        progress(number + 1, len(canvases))
    return found


def unsound(place: str, canvas: RecordedRun) -> CalibrationError:
    """Says where a graph computes NaN or infinity; `place` ends in a verb."""
    return CalibrationError(
        f"{place} NaN or infinity on a canvas ({canvas.spec.label}, "
        f"{canvas.source}, noise {canvas.mask_ratio:.0%}): the checkpoint's "
        "weights are too large or its training diverged; take an earlier checkpoint"
    )


def beyond_float16(largest: Mapping[str, Mapping[int, float]]) -> tuple[str, ...]:
    """Returns the values that float16 cannot be trusted with, in the given order."""
    return tuple(
        name
        for name, deciles in largest.items()
        if max(deciles.values(), default=0.0) * HEADROOM > FLOAT16_LIMIT
    )


def unsound_layer(model: ir.Model, layers: Sequence[WeightLayer], canvas: RecordedRun) -> str:
    """Names the first layer on a canvas that NaN or infinity comes out of or goes into, in words.

    Args:
        canvas: On which the graph gives such values.
    """
    words: dict[str, str] = {}
    for layer in layers:
        for name in layer.inputs:
            words.setdefault(name, f"what enters layer {layer.name} is")
        for name in (*layer.lookups, *layer.products):
            words[name] = f"layer {layer.name} gives"
    wanted = in_order(model, words)
    found = open_session(model, wanted).run(wanted, dict(canvas.inputs))
    for name, array in zip(wanted, found, strict=True):
        if not np.isfinite(array).all():
            return words[name]
    return f"behind its last layer graph {canvas.spec.name} gives"


def _place(model: ir.Model, name: str) -> str:
    """Names a value by the layer whose weight its node reads, else by the next layer before it."""
    value = values_of(model)[name]
    behind, seen = "", set()
    pending = [value.producer()]
    while pending:
        node = pending.pop(0)
        if node is None or node in seen:
            continue
        seen.add(node)
        for item in node.inputs:
            if item is not None and item.is_initializer() and rank_of(item) > 1:
                layer = str(item.name).removeprefix("model.").removesuffix(".weight")
                return f"{behind}layer {layer}"
        maker = value.producer()
        assert maker is not None
        behind = f"the {maker.op_type} {name} behind "
        pending.extend(item.producer() for item in node.inputs if item is not None)
    return f"value {name}"
