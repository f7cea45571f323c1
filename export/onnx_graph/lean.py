"""A graph without the bytes of its large weights, for whoever looks at types and shapes only.

ONNX's checker and shape inference take a model as one string of at most 2 GiB, and copy it a few
times on the way; a model of half a billion parameters is beyond that in float32.
"""

from __future__ import annotations

import math

import onnx
from onnx import helper

from ...runtime.errors import EngineError, brief
from .outside import add_typed_stub

LARGE_BYTES = 1 << 20
"""From this size on a weight is left out: shapes, scales and small tables stay."""


def _is_large(item: onnx.TensorProto) -> bool:
    return (
        math.prod(item.dims) * helper.tensor_dtype_to_np_dtype(item.data_type).itemsize
        >= LARGE_BYTES
        and len(item.dims) > 1
    )


def lean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copies a model, its large weights as tensors whose data lies elsewhere."""
    made, large = _without_large(model)
    for item in large:
        add_typed_stub(made.graph, item.name, item.data_type, list(item.dims))
    return made


def _without_large(
    model: onnx.ModelProto,
) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """Copies a model without its large weights; returns these as they stand in the original."""
    made, body = onnx.ModelProto(), model.graph
    made.ir_version = model.ir_version
    made.opset_import.extend(model.opset_import)
    made.functions.extend(model.functions)
    made.graph.name = body.name
    made.graph.node.extend(body.node)
    made.graph.input.extend(body.input)
    made.graph.output.extend(body.output)
    made.graph.value_info.extend(body.value_info)
    large = []
    for item in body.initializer:
        if _is_large(item):
            large.append(item)
        else:
            made.graph.initializer.append(item)
    return made, large


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the lean model with every value's type and shape, strictly inferred."""
    return onnx.shape_inference.infer_shapes(lean(model), check_type=True, strict_mode=True)


def check_valid(model: onnx.ModelProto, name: str) -> None:
    """Holds a graph to ONNX's own checker; raises EngineError with what it says."""
    # Weights stand in as inputs: the checker would look for the files of tensors outside.
    made, large = _without_large(model)
    made.graph.input.extend(
        helper.make_tensor_value_info(item.name, item.data_type, item.dims) for item in large
    )
    try:
        onnx.checker.check_model(made, full_check=False)
    except onnx.checker.ValidationError as error:
        reason = brief(error, 200)
        raise EngineError(f"graph {name} is no valid ONNX: {reason}") from error
