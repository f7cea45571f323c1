"""Holds a graph to what both ONNX Runtime's CPU provider and TensorRT 10.3 accept.

TensorRT cannot run where graphs are made, and builders newer than 10.3 let some faults pass that
10.3 refuses on the board. So the rules stand here, from the headers and operator tables of 10.3:
static ranks, no control flow, no empty tensors, no plugin, and for quantised graphs symmetric
per-tensor activations, per-channel weights and constant scales of the input's dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ...runtime.errors import EngineError
from .lean import inferred

MAX_OPSET = 20
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
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.INT8,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.BOOL,
}
CPU_OPS = ALLOWED_OPS | {"DynamicQuantizeLinear", "MatMulInteger"}
"""What graphs may hold besides that never leave ONNX Runtime's CPU provider."""
_SCALES = ("Mul", "Div")
_PASSES = ("Add", "Where", "Cast", "Reshape", "Identity")


class _Graph:
    """A graph with its lookups: who makes a value, and which values are constants."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.body = model.graph
        self.makers = {out: node for node in model.graph.node for out in node.output}
        self.constants = {item.name: item for item in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value":
                        self.constants[node.output[0]] = attribute.t
        self.types = {
            item.name: item.type.tensor_type.elem_type
            for item in (*self.body.input, *self.body.output, *self.body.value_info)
        }
        self.types |= {name: item.data_type for name, item in self.constants.items()}


def lint(model: onnx.ModelProto, *, board: bool = True) -> list[str]:
    """Returns what TensorRT 10.3 or ONNX Runtime would refuse, one line each; empty if nothing.

    Args:
        model: With its weights inside (not external).
        board: False for a graph that only ONNX Runtime's CPU provider will run: TensorRT's rules
            for types and quantisation do not bind it.
    """
    try:
        typed = inferred(model)
    except onnx.shape_inference.InferenceError as error:
        return [f"types or shapes contradict each other: {' '.join(str(error).split())[:200]}"]
    graph = _Graph(typed)
    return [
        *_check_model(model),
        *_check_tensors(graph, model.graph.initializer, board),
        *_check_nodes(graph, ALLOWED_OPS if board else CPU_OPS),
        *(_check_quantisation(graph) if board else ()),
        *_check_attention(graph),
    ]


def require_clean(model: onnx.ModelProto, name: str, *, board: bool = True) -> None:
    """Raises EngineError with the first finding and the number of them; see `lint`."""
    findings = lint(model, board=board)
    if findings:
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        raise EngineError(
            f"graph {name} would not run on TensorRT 10.3 or ONNX Runtime: {findings[0]}{more}; "
            "change the module that it was traced from"
        )


def _check_model(model: onnx.ModelProto) -> Iterator[str]:
    for item in model.opset_import:
        if item.domain not in ("", "ai.onnx"):
            yield f"opset domain {item.domain} is not ONNX's own"
        elif item.version > MAX_OPSET:
            yield f"opset {item.version} is above {MAX_OPSET}"
    if model.functions:
        yield "functions are not inlined"


def _check_tensors(
    graph: _Graph, weights: Iterable[onnx.TensorProto], board: bool
) -> Iterator[str]:
    for item in weights:
        if 0 in item.dims:
            yield f"initialiser {item.name} is empty"
            continue
        array = numpy_helper.to_array(item)
        if array.nbytes > MAX_TENSOR_BYTES:
            yield f"initialiser {item.name} has more than {MAX_TENSOR_BYTES >> 20} MiB: split it"
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            yield f"initialiser {item.name} holds NaN or infinity"
    symbols = {
        dim.dim_param
        for item in graph.body.input
        for dim in item.type.tensor_type.shape.dim
        if dim.dim_param.isidentifier()
    }
    for item in (*graph.body.input, *graph.body.output):
        for dim in item.type.tensor_type.shape.dim:
            fixed = dim.HasField("dim_value") and dim.dim_value > 0
            if not fixed and dim.dim_param not in symbols:
                yield f"{item.name} has a dimension that is neither a number nor of an input"
    for name, kind in graph.types.items():
        if kind not in ALLOWED_TYPES and (board or kind != TensorProto.UINT8):
            yield f"{name} is {TensorProto.DataType.Name(kind)}, which TensorRT has not"


def _check_nodes(graph: _Graph, allowed: frozenset[str]) -> Iterator[str]:
    for node in graph.body.node:
        if node.op_type not in allowed or node.domain not in ("", "ai.onnx"):
            yield f"op {node.op_type} is not on the list of both backends"
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs:
                yield f"{node.op_type} holds a subgraph (control flow)"


def _check_quantisation(graph: _Graph) -> Iterator[str]:
    for node in graph.body.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        where = f"{node.op_type} {node.name or node.output[0]}"
        source, scale = node.input[0], graph.constants.get(node.input[1])
        if scale is None:
            yield f"{where}: the scale is not a constant"
            continue
        scales = numpy_helper.to_array(scale)
        if not (np.isfinite(scales).all() and (scales > 0).all()):
            yield f"{where}: a scale is not positive and finite"
        if len(node.input) > 2 and node.input[2]:
            zero = graph.constants.get(node.input[2])
            if zero is None or numpy_helper.to_array(zero).any():
                yield f"{where}: the zero point is not a constant 0"
            elif zero.data_type != TensorProto.INT8:
                yield f"{where}: quantised values must be int8"
        elif node.op_type == "QuantizeLinear":
            yield f"{where}: without a zero point the output would be uint8"
        side = source if node.op_type == "QuantizeLinear" else node.output[0]
        if graph.types.get(side, scale.data_type) != scale.data_type:
            yield f"{where}: the scale's dtype is not that of {side}"
        is_weight = source in graph.constants or _from_constant(graph, source)
        if scales.size > 1 and (scales.ndim != 1 or not is_weight):
            yield f"{where}: only weights may have a scale per channel"
        elif scales.size > 1 and _scaled_by_summed_axis(graph, node):
            yield f"{where}: the scale runs along the axis that the product sums over"


def _from_constant(graph: _Graph, name: str) -> bool:
    maker = graph.makers.get(name)
    return (
        maker is not None
        and maker.op_type in ("QuantizeLinear", "Transpose", "Cast")
        and (maker.input[0] in graph.constants or _from_constant(graph, maker.input[0]))
    )


def _scaled_by_summed_axis(graph: _Graph, node: onnx.NodeProto) -> bool:
    """True if a weight's scales count what a MatMul sums over, directly or through a Transpose."""
    axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
    values = {node.output[0]: axis}
    for user in graph.body.node:
        if user.op_type == "Transpose" and user.input[0] in values:
            values[user.output[0]] = 1 - values[user.input[0]]
    return any(
        user.op_type == "MatMul" and user.input[1] in values and values[user.input[1]] % 2 == 0
        for user in graph.body.node
    )


def _check_attention(graph: _Graph) -> Iterator[str]:
    """TensorRT fuses attention only if queries are scaled before their product with the keys."""
    for node in graph.body.node:
        if node.op_type != "Softmax":
            continue
        maker = graph.makers.get(node.input[0])
        while maker is not None and maker.op_type in _PASSES:
            branches = [graph.makers[name] for name in maker.input if name in graph.makers]
            wanted = ("MatMul", "Einsum", *_SCALES, *_PASSES)
            maker = next((branch for branch in branches if branch.op_type in wanted), None)
        if maker is not None and maker.op_type in _SCALES:
            scaled = [graph.makers.get(name) for name in maker.input]
            if any(item is not None and item.op_type in ("MatMul", "Einsum") for item in scaled):
                yield "attention scores are scaled after the product: scale the queries instead"


def operator_counts(model: onnx.ModelProto) -> dict[str, int]:
    """Returns how often each operator stands in the graph, most frequent first."""
    counts: dict[str, int] = {}
    for node in model.graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
