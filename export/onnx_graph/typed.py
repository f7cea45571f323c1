"""Float16 arithmetic written into the graph: what a GPU multiplies in half precision.

TensorRT takes types as they stand in the ONNX (weak typing is gone in version 11), so the graph
itself says what is float16: weights, matrix products, the residual stream, the cache once it is
read. Float32 stay, each behind Casts: sums of squares (beyond 256 a square overflows), softmax and
the mask before it, angles of positions, and all inputs and outputs but the cache's, if
`narrow_cache` is asked. Values that were found beyond float16's range stay float32, too, and so
does all that touches them. Quantised layers take the dtype of what enters and leaves them: their
scales are float16 then, as TensorRT 10.3 demands.

`fp16.py` is the other form, for CPUs: weights stored in half the bytes, arithmetic in float32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ...runtime.errors import ConfigError
from .lean import inferred

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
LIMIT = float(np.finfo(np.float16).max)
WIDE_OPS = frozenset(
    """
    Acos Asin Cast ConstantOfShape Cos CumSum Div Exp Log LogSoftmax Pow Range Reciprocal ReduceMax
    ReduceMean ReduceMin ReduceSum Sin Softmax Softplus Sqrt
    """.split()  # noqa: SIM905
)
"""Computed in float32 whatever surrounds them."""
PRODUCTS = frozenset(("MatMul", "Gemm", "Einsum", "Conv"))
"""Never float32 unless their values leave float16's range: these are what float16 is for."""
_MOVES = ("Gather", "Transpose")


def type_fp16(model: onnx.ModelProto, float32: Collection[str] = ()) -> int:
    """Rewrites a float32 graph, quantised or not, with float16 arithmetic, in place.

    Args:
        model: The graph.
        float32: Values that stay float32; see `half_values` for those that would not.

    Returns:
        How many weights became float16.

    Raises:
        ConfigError: A weight is beyond float16's range.
    """
    graph = model.graph
    floats = _float_values(model)
    wide = _wide_nodes(graph, floats, float32)
    kinds = {item.name: FLOAT for item in (*graph.input, *graph.initializer)}
    for index, node in enumerate(graph.node):
        for name in node.output:
            kinds[name] = FLOAT if index in wide else HALF
    weights = {item.name: item for item in graph.initializer if item.name in floats}
    inputs = {item.name for item in graph.input}
    outputs = {item.name for item in graph.output}
    nodes: list[onnx.NodeProto] = []
    made: dict[tuple[str, int], str] = {}
    narrowed: set[str] = set()

    def as_kind(name: str, kind: int) -> str:
        """Returns the name of a value in a dtype, casting it on first use."""
        if name not in floats or kinds[name] == kind:
            return name
        if (name, kind) not in made:
            other = f"{name}.{'fp16' if kind == HALF else 'fp32'}"
            made[name, kind] = other
            if name in weights:
                graph.initializer.append(_narrow(weights[name], other))
                narrowed.add(other)
            else:
                source = name
                if name in inputs:
                    # Rows of a cache that nobody reads may hold anything finite; infinity times
                    # the zero of a masked score would be NaN.
                    source = f"{name}.clipped"
                    limits = _limits(graph)
                    nodes.append(helper.make_node("Clip", [name, *limits], [source], name=source))
                nodes.append(
                    helper.make_node("Cast", [source], [other], name=f"{other}.cast", to=kind)
                )
        return made[name, kind]

    for index, node in enumerate(graph.node):
        kind = FLOAT if index in wide else HALF
        fixed = [as_kind(name, kind) for name in node.input]
        del node.input[:]
        node.input.extend(fixed)
        nodes.append(node)
        for position, name in enumerate(node.output):
            if name in outputs and name in floats and kind == HALF:
                # The output keeps name and dtype; the float16 value behind it gets another name.
                node.output[position] = f"{name}.fp16"
                made[name, HALF] = f"{name}.fp16"
                kinds[name] = FLOAT
                nodes.append(
                    helper.make_node(
                        "Cast", [f"{name}.fp16"], [name], name=f"{name}.cast", to=FLOAT
                    )
                )
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph)
    return len(narrowed)


def narrow_cache(model: onnx.ModelProto, kv: str, kv_new: str) -> bool:
    """Makes the cache of a typed graph float16 where it enters and leaves, in place.

    Its values are float16 on both sides of the Casts that stand there, so nothing changes but that
    a run reads and writes half the bytes.

    Args:
        model: A graph that `type_fp16` has rewritten.
        kv: The input that holds the cache.
        kv_new: The output that is appended to it.

    Returns:
        False, and nothing is changed, where something reads or makes them in float32.
    """
    graph = model.graph
    nodes = {name: node for node in graph.node for name in node.output}
    # Asking for the context's length is nobody's arithmetic.
    readers = [node for node in graph.node if kv in node.input and node.op_type != "Shape"]
    clipped = [node for node in graph.node if f"{kv}.clipped" in node.input]
    made = nodes.get(kv_new)
    through = [node.op_type for node in (*readers, *clipped)] == ["Clip", "Cast"]
    if not through or clipped[0].output[0] != f"{kv}.fp16":
        return False
    if made is None or made.op_type != "Cast" or made.input[0] != f"{kv_new}.fp16":
        return False
    if any(kv_new in node.input for node in graph.node):
        return False
    gone = (readers[0], clipped[0], made)
    kept = [node for node in graph.node if not any(node is other for other in gone)]
    names = {f"{kv}.fp16": kv, f"{kv_new}.fp16": kv_new}
    for node in kept:
        for side in (node.input, node.output):
            renamed = [names.get(name, name) for name in side]
            del side[:]
            side.extend(renamed)
    del graph.node[:]
    graph.node.extend(kept)
    for item in (*graph.input, *graph.output):
        if item.name in (kv, kv_new):
            item.type.tensor_type.elem_type = HALF
    _drop_unused(graph)
    return True


def _float_values(model: onnx.ModelProto) -> set[str]:
    """Names of all float32 values."""
    typed = inferred(model).graph
    items = (*typed.input, *typed.output, *typed.value_info)
    names = {item.name for item in items if item.type.tensor_type.elem_type == FLOAT}
    return names | {item.name for item in typed.initializer if item.data_type == FLOAT}


def half_values(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the computed values that typing makes float16, in the graph's order."""
    floats = _float_values(model)
    wide = _wide_nodes(model.graph, floats, ())
    return tuple(
        name
        for index, node in enumerate(model.graph.node)
        if index not in wide
        for name in node.output
        if name in floats
    )


def _wide_nodes(graph: onnx.GraphProto, floats: set[str], float32: Collection[str]) -> set[int]:
    """Indices of the nodes that compute in float32.

    Besides WIDE_OPS these are all nodes that touch no float, what only feeds float32 nodes (the
    square under a mean, the mask under a softmax, the angle under a cosine), and all that reads or
    makes a value of `float32`.
    """
    kept = set(float32)
    for node in graph.node:
        # Quantised and back, a large value is as large as before.
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[0] in kept:
            kept.update(node.output)
    users: dict[str, list[int]] = defaultdict(list)
    for index, node in enumerate(graph.node):
        for name in node.input:
            users[name].append(index)
    outputs = {item.name for item in graph.output}
    wide: set[int] = set()
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        made = [name for name in node.output if name in floats]
        feeds_wide_only = bool(made) and all(
            name not in outputs and users[name] and all(user in wide for user in users[name])
            for name in made
        )
        must_be_half = node.op_type in PRODUCTS or _reads_weights(graph, node)
        if node.op_type == "QuantizeLinear":
            chosen = False  # its output is no float, its input and scale are
        else:
            chosen = node.op_type in WIDE_OPS or not made or (feeds_wide_only and not must_be_half)
        if chosen or kept.intersection((*node.input, *node.output)):
            wide.add(index)
    return wide


def _reads_weights(graph: onnx.GraphProto, node: onnx.NodeProto) -> bool:
    """True for an embedding, which is read in the dtype it is stored in or dequantised to."""
    if node.op_type not in _MOVES:
        return False
    stored = {item.name for item in graph.initializer}
    for other in graph.node:
        if other.op_type == "DequantizeLinear" and other.input[0] in stored:
            stored.update(other.output)
    return node.input[0] in stored


def _narrow(item: onnx.TensorProto, name: str) -> onnx.TensorProto:
    """Gives a weight as float16; one without values (`outside.py`) without values, too."""
    if item.data_location == TensorProto.EXTERNAL:
        stub = onnx.TensorProto()
        stub.CopyFrom(item)
        stub.name, stub.data_type = name, HALF
        return stub
    array = numpy_helper.to_array(item)
    if array.size and float(np.abs(array).max()) > LIMIT:
        raise ConfigError(
            f"weight {item.name} is beyond float16's range of 65504: export with --precision fp32"
        )
    return numpy_helper.from_array(array.astype(np.float16), name)


def _limits(graph: onnx.GraphProto) -> tuple[str, str]:
    """Names of the scalars -65504 and 65504, made on first use."""
    names = ("fp16.least", "fp16.most")
    if not any(item.name == names[0] for item in graph.initializer):
        for name, value in zip(names, (-LIMIT, LIMIT), strict=True):
            graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    return names


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [item for item in graph.initializer if item.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
