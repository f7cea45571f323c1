"""Float16 in a float32 graph: as arithmetic, for GPUs, or as storage only, for CPUs.

TensorRT takes types as they are in the ONNX (weak typing is gone in version 11), so a typed graph
itself says what is float16: weights, matrix products, the residual stream, the cache once it is
read. Float32 stay, each behind Casts: sums of squares (beyond 256 a square overflows), softmax and
the mask before it, angles of positions, and all inputs and outputs but the cache's, after
`narrow_cache`. Values that were found beyond float16's range stay float32 too, and so does all that
touches them. Quantised layers take the dtype of what enters and leaves them: their scales are
float16 then, as TensorRT 10.3 demands.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from ...runtime.errors import ConfigError
from ..graphs import (
    array_of,
    cast,
    constant,
    lazy_constant,
    make_node,
    rank_of,
    remove_unused,
    replace_node,
    value_types,
    values_of,
)
from ..layers import FLOAT16_LIMIT

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
WIDE_OPS = frozenset(
    """
    Acos Asin Cast ConstantOfShape Cos CumSum Div Exp Log LogSoftmax Pow Range Reciprocal ReduceMax
    ReduceMean ReduceMin ReduceSum Sin Softmax Softplus Sqrt
    """.split()  # noqa: SIM905
)
"""Computed in float32 whatever surrounds them."""
PRODUCTS = frozenset(("MatMul", "Gemm", "Einsum", "Conv"))
"""Never float32 unless their values leave float16's range: these are what float16 is for."""
MIN_ITEMS = 4096
"""Of a weight to be stored as float16: smaller ones (norm weights, tables) stay float32."""
_MOVES = ("Gather", "Transpose")
"""Operators that only move values."""


def type_fp16(model: ir.Model, float32: Collection[str] = ()) -> None:
    """Rewrites a float32 graph, quantised or not, with float16 arithmetic, in place.

    Args:
        model: The graph.
        float32: Values that stay float32, in addition to those that always do.

    Raises:
        ConfigError: A weight is beyond float16's range.
    """
    graph = model.graph
    floats = _float_values(model)
    wide = _wide_nodes(model, floats, float32)
    kinds = {
        value: FLOAT if node in wide else HALF
        for node in graph
        for value in node.outputs
        if value in floats
    }
    outputs = {value: place for place, value in enumerate(graph.outputs)}
    made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def as_kind(value: ir.Value, kind: ir.DataType, reader: ir.Node) -> ir.Value:
        """Returns a value in a dtype, cast on first use in front of its reader."""
        if value not in floats or kinds.get(value, FLOAT) == kind:
            return value
        if (value, kind) not in made:
            name = f"{value.name}.{'fp16' if kind == HALF else 'fp32'}"
            if value.is_initializer():
                made[value, kind] = _narrow(graph, value, name)
            else:
                nodes = []
                if value.is_graph_input():
                    # Cache rows behind the context may hold anything finite; infinity times the
                    # zero of a masked score would be NaN.
                    limits = _limits(graph)
                    nodes.append(make_node("Clip", [value, *limits], f"{value.name}.clipped"))
                nodes.append(cast(nodes[0].outputs[0] if nodes else value, name, kind))
                graph.insert_before(reader, nodes)
                made[value, kind] = nodes[-1].outputs[0]
        return made[value, kind]

    for reader in list(graph):
        kind = FLOAT if reader in wide else HALF
        for index, value in enumerate(reader.inputs):
            if value is not None:
                reader.replace_input_with(index, as_kind(value, kind, reader))
        for value in reader.outputs:
            if value in outputs and kinds.get(value) == HALF:
                # The output keeps name and dtype; the float16 value behind it gets another name.
                name, value.name = str(value.name), f"{value.name}.fp16"
                wider = cast(value, name, FLOAT)
                graph.insert_after(reader, wider)
                wider.outputs[0].dtype, wider.outputs[0].shape = FLOAT, value.shape
                value.type = value.shape = None  # typed again where it is written
                graph.outputs[outputs[value]] = wider.outputs[0]
                made[value, FLOAT] = wider.outputs[0]
    remove_unused(model)


def narrow_cache(model: ir.Model, kv: str, kv_new: str) -> bool:
    """Makes the cache of a typed graph float16 where it enters and leaves, in place.

    Its values are float16 on both sides of the Casts at these places, so nothing changes but that
    a run reads and writes half the bytes.

    Args:
        model: A graph that `type_fp16` has rewritten.
        kv: The input that holds the cache.
        kv_new: The output that is appended to it.

    Returns:
        False, and nothing is changed, where something reads or makes them in float32.
    """
    graph = model.graph
    entering = next(value for value in graph.inputs if value.name == kv)
    leaving = next(value for value in graph.outputs if value.name == kv_new)
    # A Shape reads no value.
    readers = [node for node in entering.consumers() if node.op_type != "Shape"]
    behind = list(readers[0].outputs[0].consumers()) if len(readers) == 1 else []
    if [node.op_type for node in (*readers, *behind)] != ["Clip", "Cast"]:
        return False
    widened = leaving.producer()
    if widened is None or widened.op_type != "Cast" or leaving.consumers():
        return False
    inner = widened.inputs[0]
    if inner is None or inner.name != f"{kv_new}.fp16":
        return False
    entering.type = ir.TensorType(HALF)  # clones share the old one
    behind[0].outputs[0].replace_all_uses_with(entering)
    graph.outputs[graph.outputs.index(leaving)] = inner
    graph.remove([behind[0], readers[0], widened], safe=True)
    inner.name, inner.type, inner.shape = kv_new, ir.TensorType(HALF), leaving.shape
    remove_unused(model)
    return True


def half_values(model: ir.Model) -> tuple[str, ...]:
    """Returns the computed values that typing makes float16, in the graph's order."""
    floats = _float_values(model)
    wide = _wide_nodes(model, floats, ())
    return tuple(
        str(value.name)
        for node in model.graph
        if node not in wide
        for value in node.outputs
        if value in floats
    )


def _float_values(model: ir.Model) -> set[ir.Value]:
    types = value_types(model)
    return {value for name, value in values_of(model).items() if types.get(name) == FLOAT}


def _wide_nodes(
    model: ir.Model, floats: Collection[ir.Value], float32: Collection[str]
) -> set[ir.Node]:
    """Returns the nodes that compute in float32.

    In addition to WIDE_OPS these are all nodes that touch no float, what only feeds float32 nodes
    (the square under a mean, the mask under a softmax, the angle under a cosine), and all that
    reads or makes a value of `float32`.
    """
    graph = model.graph
    kept: set[ir.Value | None] = {
        value for name, value in values_of(model).items() if name in float32
    }
    for node in graph:
        # Quantised and back, a large value is as large as before.
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.inputs[0] in kept:
            kept.update(node.outputs)
    wide: set[ir.Node] = set()
    for node in reversed(graph):
        made = [value for value in node.outputs if value in floats]
        feeds_wide_only = bool(made) and all(
            not value.is_graph_output() and value.consumers() and wide.issuperset(value.consumers())
            for value in made
        )
        must_be_half = node.op_type in PRODUCTS or _reads_weights(node)
        if node.op_type == "QuantizeLinear":
            chosen = False  # its output is no float, its input and scale are
        else:
            chosen = node.op_type in WIDE_OPS or not made or (feeds_wide_only and not must_be_half)
        if chosen or kept.intersection((*node.inputs, *node.outputs)):
            wide.add(node)
    return wide


def _reads_weights(node: ir.Node) -> bool:
    """True for an embedding, which is read in the dtype it is stored in or dequantised to."""
    value = node.inputs[0] if node.op_type in _MOVES else None
    maker = value.producer() if value is not None else None
    if maker is not None and maker.op_type == "DequantizeLinear":
        value = maker.inputs[0]
    return value is not None and value.is_initializer()


def store_fp16(model: ir.Model) -> int:
    """Stores large float32 matrices as float16 with a Cast to float32 behind them, in place.

    Half the bytes on disk, for CPUs: ONNX Runtime folds the Cast while it loads, so its kernels
    compute in float32 on rounded weights, with the speed and memory of fp32. Inputs, outputs, norm
    weights and biases stay float32.

    Returns:
        How many tensors were narrowed.

    Raises:
        ConfigError: A weight is beyond float16's range.
    """
    graph = model.graph
    large = [
        value
        for value in graph.initializers.values()
        if value.dtype == FLOAT and rank_of(value) > 1 and array_of(value).size >= MIN_ITEMS
    ]
    place = {node: number for number, node in enumerate(graph)}
    for value in large:
        narrow = _narrow(graph, value, f"{value.name}.fp16")
        for node in value.consumers():
            if node.op_type in _MOVES and node.inputs[0] is value:
                # Moved in float16: the Cast goes behind it.
                moved = ir.node(
                    node.op_type,
                    [narrow, *node.inputs[1:]],
                    node.attributes,
                    outputs=[ir.Value(name=f"{node.outputs[0].name}.fp16")],
                )
                wider = cast(moved.outputs[0], str(node.outputs[0].name), FLOAT)
                replace_node(node, [moved, wider])
        if readers := value.consumers():
            wider = cast(narrow, f"{value.name}.fp32", FLOAT)
            value.replace_all_uses_with(wider.outputs[0])
            graph.insert_before(min(readers, key=lambda node: place[node]), wider)
    remove_unused(model)
    return len(large)


def _narrow(graph: ir.Graph, value: ir.Value, name: str) -> ir.Value:
    """Adds a weight as float16."""
    array = array_of(value)
    if array.size and max(float(array.max()), -float(array.min())) > FLOAT16_LIMIT:
        raise ConfigError(
            f"weight {value.name} is beyond float16's range of 65504: export with --precision fp32"
        )
    return lazy_constant(graph, name, lambda: array.astype(np.float16), HALF, array.shape)


def _limits(graph: ir.Graph) -> tuple[ir.Value, ir.Value]:
    """Returns the scalars -65504 and 65504."""
    return (
        constant(graph, "fp16.least", np.array(-FLOAT16_LIMIT, np.float32)),
        constant(graph, "fp16.most", np.array(FLOAT16_LIMIT, np.float32)),
    )
