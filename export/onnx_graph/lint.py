"""Checks a graph against what ONNX Runtime's CPU provider and TensorRT 10.3 accept.

TensorRT cannot run where graphs are made, and builders newer than 10.3 let some faults pass that
10.3 refuses on the board. So the rules are written here, after the headers and operator tables of
10.3: static ranks, no control flow, no empty tensors, no plugin, and for quantised graphs symmetric
per-tensor activations, per-channel weights and constant scales of the input's dtype.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir

from ...calibration.graphs import array_of, value_types, without_weights
from ...calibration.grids import BOARD_GROUPS
from ...runtime.errors import EngineError, brief

MAX_OPSET = 20
INT4_OPSET = 21
"""Of graphs with weights of 4 bits. Whether 10.3's parser takes them has not been tried."""
MAX_TENSOR_BYTES = 256 << 20
"""One allocation, so that a larger head is split: on current L4T (NvMap) it may fail (reported at
1,025 MiB; 256 is our margin)."""
ALLOWED_OPS = frozenset(
    """
    Abs Add And ArgMax Cast Ceil Clip Concat Constant ConstantOfShape Conv Cos CumSum
    DequantizeLinear Div Einsum Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND
    Gelu Gemm Greater GreaterOrEqual Identity IsNaN LayerNormalization Less LessOrEqual Log
    LogSoftmax MatMul Max Min Mul Neg Not OneHot Or Pad Pow QuantizeLinear Range Reciprocal
    ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Round Shape Sigmoid Sign Sin Slice
    Softmax Softplus Split Sqrt Squeeze Sub Sum Tanh Tile TopK Transpose Trilu Unsqueeze Where
    """.split()  # noqa: SIM905
)
ALLOWED_TYPES = {
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.INT4,
    ir.DataType.INT8,
    ir.DataType.INT32,
    ir.DataType.INT64,
    ir.DataType.BOOL,
}
CPU_OPS = ALLOWED_OPS | {"MatMulInteger", "MatMulNBits"}
"""What graphs may hold that never leave ONNX Runtime's CPU provider."""
CONTRIB = "com.microsoft"
"""Domain of its own operators."""
_SCALES = ("Mul", "Div")
_PASSES = ("Add", "Where", "Cast", "Reshape", "Identity")
Types = dict[str, ir.DataType]


def lint(model: ir.Model, *, board: bool = True) -> list[str]:
    """Returns what TensorRT 10.3 or ONNX Runtime would refuse, one line each; empty if nothing.

    Args:
        board: False for a graph that only ONNX Runtime's CPU provider will run: TensorRT's rules
            for types and quantisation do not apply to it.
    """
    try:
        types = value_types(model)
    except onnx.shape_inference.InferenceError as error:
        return [f"types or shapes contradict each other: {brief(error, 200)}"]
    return [
        *_check_model(model, board),
        *_check_tensors(model, types, board),
        *_check_nodes(model, ALLOWED_OPS if board else CPU_OPS),
        *(_check_quantisation(model, types) if board else ()),
        *_check_attention(model),
    ]


def require_clean(model: ir.Model, name: str, *, board: bool = True) -> None:
    """Raises EngineError if ONNX's own checker or `lint` finds a fault in a graph."""
    try:
        onnx.checker.check_model(without_weights(model))
    except onnx.checker.ValidationError as error:
        reason = brief(error, 200)
        raise EngineError(f"graph {name} is not valid ONNX: {reason}") from error
    findings = lint(model, board=board)
    if findings:
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        raise EngineError(
            f"graph {name} would not run on TensorRT 10.3 or ONNX Runtime: {findings[0]}{more}; "
            "change the module that it was traced from"
        )


def _check_model(model: ir.Model, board: bool) -> Iterator[str]:
    for domain, version in model.opset_imports.items():
        if domain == CONTRIB and not board:
            continue
        if domain not in ("", "ai.onnx"):
            yield f"opset domain {domain} is not ONNX's own"
        elif version > (most := INT4_OPSET if _has_int4(model) else MAX_OPSET):
            yield f"opset {version} is above {most}"
    if model.functions:
        yield "functions are not inlined"


def _has_int4(model: ir.Model) -> bool:
    return any(item.dtype == ir.DataType.INT4 for item in model.graph.initializers.values())


def _check_tensors(model: ir.Model, types: Types, board: bool) -> Iterator[str]:
    for name, value in model.graph.initializers.items():
        array = array_of(value)
        if 0 in array.shape:
            yield f"initialiser {name} is empty"
            continue
        if array.nbytes > MAX_TENSOR_BYTES:
            yield f"initialiser {name} has more than {MAX_TENSOR_BYTES >> 20} MiB: split it"
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            yield f"initialiser {name} holds NaN or infinity"
    sizes = [size for value in model.graph.inputs for size in value.shape or ()]
    names = {size.value for size in sizes if isinstance(size, ir.SymbolicDim)} - {None}
    for value in (*model.graph.inputs, *model.graph.outputs):
        for size in value.shape or ():
            named = isinstance(size, ir.SymbolicDim) and size.value in names
            if not named and not (isinstance(size, int) and size > 0):
                yield f"{value.name} has a dimension that is neither a number nor of an input"
    for name, kind in types.items():
        if kind not in ALLOWED_TYPES and (board or kind != ir.DataType.UINT8):
            yield f"{name} is {kind.name}, which TensorRT does not have"


def _check_nodes(model: ir.Model, allowed: frozenset[str]) -> Iterator[str]:
    for node in model.graph:
        domains = (CONTRIB,) if node.op_type == "MatMulNBits" else ("", "ai.onnx")
        if node.op_type not in allowed or node.domain not in domains:
            yield f"op {node.op_type} is not on the list of both backends"
        for attribute in node.attributes.values():
            if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                yield f"{node.op_type} holds a subgraph (control flow)"


def _constant(value: ir.Value | None) -> np.ndarray | None:
    """Returns the content of an initialiser or of a Constant node; None for another value."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    maker = value.producer()
    if maker is not None and maker.op_type == "Constant" and "value" in maker.attributes:
        return maker.attributes["value"].as_tensor().numpy()
    return None


def _check_quantisation(model: ir.Model, types: Types) -> Iterator[str]:
    for node in model.graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        where = f"{node.op_type} {node.name or node.outputs[0].name}"
        source, scales = node.inputs[0], _constant(node.inputs[1])
        if scales is None:
            yield f"{where}: the scale is not a constant"
            continue
        if not (np.isfinite(scales).all() and (scales > 0).all()):
            yield f"{where}: a scale is not positive and finite"
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            zero = _constant(node.inputs[2])
            if zero is None or zero.any():
                yield f"{where}: the zero point is not a constant 0"
            elif zero.dtype != np.int8:
                yield f"{where}: quantised values must be int8"
        elif node.op_type == "QuantizeLinear":
            yield f"{where}: without a zero point the output would be uint8"
        side = source if node.op_type == "QuantizeLinear" else node.outputs[0]
        kind = ir.DataType.from_numpy(scales.dtype)
        if side is not None and types.get(str(side.name), kind) != kind:
            yield f"{where}: the scale's dtype is not that of {side.name}"
        if "block_size" in node.attributes:
            if source is None or types.get(str(source.name)) != ir.DataType.INT4:
                yield f"{where}: only weights of 4 bits may have blocks"
            elif node.attributes["block_size"].as_int() not in BOARD_GROUPS:
                yield f"{where}: blocks must be of {' or '.join(map(str, BOARD_GROUPS))} values"
            continue
        if scales.size > 1 and (scales.ndim != 1 or not _is_weight(source)):
            yield f"{where}: only weights may have a scale per channel"
        elif scales.size > 1 and _scaled_by_summed_axis(node):
            yield f"{where}: the scale runs along the axis that the product sums over"


def _is_weight(value: ir.Value | None) -> bool:
    """True for a constant, quantised, transposed or cast or not."""
    while value is not None and _constant(value) is None:
        maker = value.producer()
        if maker is None or maker.op_type not in ("QuantizeLinear", "Transpose", "Cast"):
            return False
        value = maker.inputs[0]
    return value is not None


def _scaled_by_summed_axis(node: ir.Node) -> bool:
    """True if a weight's scales count what a MatMul sums over, directly or through a Transpose."""
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    pending = [(node.outputs[0], axis)]
    while pending:
        value, axis = pending.pop()
        for reader, place in value.uses():
            if reader.op_type == "Transpose":
                pending.append((reader.outputs[0], 1 - axis))
            elif reader.op_type == "MatMul" and place == 1 and axis % 2 == 0:
                return True
    return False


def _check_attention(model: ir.Model) -> Iterator[str]:
    """TensorRT fuses attention only if queries are scaled before their product with the keys."""
    for node in model.graph:
        if node.op_type != "Softmax":
            continue
        maker = node.predecessors()[0] if node.predecessors() else None
        while maker is not None and maker.op_type in _PASSES:
            wanted = ("MatMul", "Einsum", *_SCALES, *_PASSES)
            branches = (item for item in maker.predecessors() if item.op_type in wanted)
            maker = next(branches, None)
        scaled = maker.predecessors() if maker is not None and maker.op_type in _SCALES else ()
        if any(item.op_type in ("MatMul", "Einsum") for item in scaled):
            yield "attention scores are scaled after the product: scale the queries instead"


def operator_counts(model: ir.Model) -> dict[str, int]:
    """Returns how often each operator occurs in the graph, most frequent first."""
    counts = Counter(node.op_type for node in model.graph)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
