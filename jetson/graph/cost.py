"""What one run of a graph costs: products, bytes and kernels, from the graph itself.

Knows no machine: it counts. Operations whose inputs are weights and shapes alone are folded when
an engine is built and cost nothing in a run; views (Reshape, Squeeze, ...) move nothing. What is
left becomes kernels as TensorRT builds them: every product, reduction and softmax is one, and the
pointwise and moving operations between two of them are fused into one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .onnx_graph import Graph, Node
from .origins import VIEWS, Origins, is_parameter
from .shape_rules import einsum_sizes
from .shapes import Value, infer

PRODUCTS = frozenset(("MatMul", "MatMulInteger", "MatMulNBits", "Gemm", "Einsum", "Conv"))
BARRIERS = frozenset(
    ("Softmax", "LogSoftmax", "LayerNormalization", "CumSum", "TopK", "ArgMax")
) | {f"Reduce{kind}" for kind in ("Max", "Mean", "Min", "Sum")}
"""Each a kernel of its own: a row must be complete before anything behind it starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One launch."""

    op: str
    """The product's or reduction's operator; `pointwise` for what is fused between them."""
    num_nodes: int
    macs: int = 0
    """Multiply-accumulates of a product."""
    batch: int = 1
    """Products of a batch; rows, inner and columns are of one of them."""
    rows: int = 0
    inner: int = 0
    columns: int = 0
    dtype: str = "float32"
    """What the product multiplies."""
    weight_bytes: int = 0
    """Of weights read, as they are stored."""
    outer_bytes: int = 0
    """Of the graph's inputs read (the cache among them) and outputs written."""
    passed: tuple[int, ...] = ()
    """Bytes of each value that comes from another kernel or goes to one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphCost:
    """One run of one graph at one shape."""

    kernels: tuple[Kernel, ...]
    nodes: tuple[NodeCost, ...]
    """The same run node by node, as an engine sees it that fuses nothing."""
    macs: int
    weight_bytes: int
    """Weights that one run reads, as stored; of an embedding the rows looked up."""
    stored_bytes: int
    """All weights."""
    widened_bytes: int
    """All weights as an engine holds them that folds casts and dequantisation."""
    input_bytes: int
    output_bytes: int
    activation_bytes: int
    """Peak of the values between kernels."""
    node_activation_bytes: int
    """Peak of the values between nodes, nothing fused."""

    @property
    def operations(self) -> int:
        """Two per multiply-accumulate; pointwise work is not counted."""
        return 2 * self.macs


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCost:
    """One node that is executed, with the kernel it would be alone."""

    op: str
    kernel: Kernel
    constant_input: bool
    """Whether the second factor of a product is a weight, which engines lay out beforehand."""
    items: int
    """Elements of its first output."""


def graph_cost(graph: Graph, dims: Mapping[str, int]) -> GraphCost:
    """Counts one run of a graph whose named dimensions have these sizes; raises BundleError."""
    values = infer(graph, dims)
    run = [node for node in graph.nodes if not all(values[out].constant for out in node.outputs)]
    origins = Origins(graph, values)
    nodes = tuple(_node_cost(node, values, origins) for node in run if node.op not in VIEWS)
    groups = _groups(run, values)
    kernels = tuple(_kernel(group, values, origins) for group in groups)
    outputs = [port.name for port in graph.outputs]
    return GraphCost(
        kernels=kernels,
        nodes=nodes,
        macs=sum(kernel.macs for kernel in kernels),
        weight_bytes=origins.weight_bytes(run),
        stored_bytes=sum(values[name].nbytes for name in origins.stored(run)),
        widened_bytes=sum(values[name].nbytes for name in origins.folded(run)),
        input_bytes=sum(values[port.name].nbytes for port in graph.inputs),
        output_bytes=sum(values[name].nbytes for name in outputs),
        activation_bytes=_peak(groups, values, origins),
        node_activation_bytes=_peak([[node] for node in run], values, origins),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation, as memory sees it."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    in_place: bool = False
    """Whether its first output may take the place of an equally large input that dies here."""


def peak_bytes(steps: Sequence[Operation], sizes: Mapping[str, int]) -> int:
    """Returns the largest sum of bytes that are alive at any step, without fragmentation.

    A value lives from the step that makes it to the last one that reads it. What a step makes
    exists beside what it reads, unless it may write over an input that ends there.

    Args:
        sizes: Bytes of each value that takes memory; other names (weights, inputs, views of
            something else) cost nothing here.
    """
    last: dict[str, int] = {}
    for index, step in enumerate(steps):
        for name in (*step.writes, *step.reads):
            last[name] = index
    alive: dict[str, int] = {}
    peak = 0
    for index, step in enumerate(steps):
        taken = _replaced(step, index, last, alive, sizes) if step.in_place else None
        if taken is not None:
            del alive[taken]
        alive |= {name: sizes[name] for name in step.writes if sizes.get(name)}
        peak = max(peak, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if last[name] > index}
    return peak


def _replaced(
    step: Operation,
    index: int,
    last: Mapping[str, int],
    alive: Mapping[str, int],
    sizes: Mapping[str, int],
) -> str | None:
    """The input that the first output overwrites."""
    wanted = sizes.get(step.writes[0], 0)
    for name in step.reads:
        if name in alive and last[name] == index and alive[name] == wanted:
            return name
    return None


def product_size(node: Node, values: Mapping[str, Value]) -> tuple[int, int, int, int]:
    """Returns (batch, rows, inner, columns) of a product; their product is its MACs."""
    a, b = (values[name].shape for name in node.inputs[:2])
    out = values[node.outputs[0]]
    match node.op:
        case "MatMul" | "MatMulInteger":
            inner = a[-1]
            columns = b[-1] if len(b) > 1 else 1
            batch = int(np.prod(b[:-2], dtype=np.int64)) if len(b) > 2 else 1
            return batch, out.items // (columns * batch), inner, columns
        case "MatMulNBits":
            columns = node.attributes["N"]
            return 1, out.items // columns, a[-1], columns
        case "Gemm":
            inner = a[0 if node.attributes.get("transA", 0) else 1]
            return 1, out.shape[0], inner, out.shape[1]
        case "Conv":
            return 1, out.items // out.shape[1], int(np.prod(b[1:], dtype=np.int64)), out.shape[1]
        case "Einsum":
            sizes, right = einsum_sizes(node.attributes["equation"], [a, b])
            total = int(np.prod(list(sizes.values()), dtype=np.int64))
            left, other = node.attributes["equation"].replace(" ", "").split("->")[0].split(",")
            shared = [index for index in right if index in left and index in other]
            batch = int(np.prod([sizes[index] for index in shared], dtype=np.int64))
            inner = max(1, total // max(1, out.items))
            columns = int(
                np.prod([sizes[i] for i in right if i in other and i not in left], dtype=np.int64)
            )
            return batch, out.items // (batch * columns), inner, columns
        case op:
            raise AssertionError(op)


def _kernel(group: list[Node], values: Mapping[str, Value], origins: Origins) -> Kernel:
    """What a group of nodes costs as one kernel."""
    made = {name for node in group for name in node.outputs}
    inside = {id(node) for node in group}
    reads: dict[str, int] = {}
    weights: dict[str, int] = {}
    for node in group:
        looked_up = node.op in ("Gather", "GatherElements", "GatherND", "Slice")
        constants = set(origins.constants(node))
        for place, name in enumerate(node.inputs):
            source = origins.source(name)
            if not name or source in made or is_parameter(node, place):
                continue
            size = values[node.outputs[0] if looked_up and place == 0 else name].nbytes
            if name in constants:
                roots = origins.roots(name)
                stored = sum(values[root].nbytes for root in roots)
                weights["+".join(sorted(roots))] = min(size, stored) if looked_up else stored
            elif not values[name].constant:
                reads[source] = reads.get(source, 0) + size
    # Looking up a part twice may read the whole, but nothing reads more than there is.
    reads = {name: min(size, values[name].nbytes) for name, size in reads.items()}
    outer = {name: size for name, size in reads.items() if name in origins.inputs}
    left = {
        name: values[name].nbytes
        for name in made
        if name not in origins.outputs and not inside.issuperset(origins.readers.get(name, ()))
    }
    written = sum(values[name].nbytes for name in made & origins.outputs)
    sized = next((node for node in group if node.op in PRODUCTS), None)
    batch, rows, inner, columns = product_size(sized, values) if sized else (1, 0, 0, 0)
    return Kernel(
        op=group[-1].op if len(group) == 1 else "pointwise",
        num_nodes=len(group),
        macs=batch * rows * inner * columns,
        batch=batch,
        rows=rows,
        inner=inner,
        columns=columns,
        dtype=origins.factor_dtype(sized) if sized else values[group[-1].outputs[0]].dtype,
        weight_bytes=sum(weights.values()),
        outer_bytes=sum(outer.values()) + written,
        passed=(*(size for name, size in reads.items() if name not in outer), *left.values()),
    )


def _node_cost(node: Node, values: Mapping[str, Value], origins: Origins) -> NodeCost:
    out = values[node.outputs[0]]
    second = node.inputs[1] if len(node.inputs) > 1 else ""
    return NodeCost(
        op=node.op,
        kernel=_kernel([node], values, origins),
        constant_input=bool(second) and values[second].constant,
        items=out.items,
    )


def _groups(run: list[Node], values: Mapping[str, Value]) -> list[list[Node]]:
    """Nodes by kernel, in execution order; views belong to no kernel."""
    level: dict[str, int] = {}
    group_of: dict[str, int] = {}
    groups: list[list[Node]] = []
    for node in run:
        inputs = [name for name in node.inputs if name and not values[name].constant]
        depth = max((level.get(name, 0) for name in inputs), default=0)
        if node.op in VIEWS:
            for name in node.outputs:
                level[name] = depth
                if inputs and inputs[0] in group_of:
                    group_of[name] = group_of[inputs[0]]
            continue
        heavy = node.op in PRODUCTS or node.op in BARRIERS
        near = {
            group_of[name] for name in inputs if name in group_of and level.get(name, 0) == depth
        }
        near = {index for index in near if groups[index]}
        if heavy or not near:
            groups.append([node])
            index = len(groups) - 1
        else:
            index = max(near)
            # Two chains that meet become one kernel, at the later one's place.
            for other in sorted(near - {index}):
                groups[index] = groups[other] + groups[index]
                for name, place in group_of.items():
                    if place == other:
                        group_of[name] = index
                groups[other] = []
            groups[index].append(node)
        for name in node.outputs:
            level[name] = depth + (1 if heavy else 0)
            if not heavy:
                group_of[name] = index
    return [group for group in groups if group]


def _peak(groups: list[list[Node]], values: Mapping[str, Value], origins: Origins) -> int:
    """Peak bytes between groups; inputs, outputs and weights lie elsewhere."""
    steps: list[Operation] = []
    sizes: dict[str, int] = {}
    for group in groups:
        inside = {id(node) for node in group}
        writes = tuple(
            name
            for node in group
            for name in node.outputs
            if node.op not in VIEWS
            and name not in origins.outputs
            and not inside.issuperset(origins.readers.get(name, ()))
        )
        reads = tuple(origins.source(name) for node in group for name in node.inputs if name)
        sizes |= {name: values[name].nbytes for name in writes}
        in_place = bool(writes) and not any(node.op in PRODUCTS for node in group)
        steps.append(Operation(reads=reads, writes=writes, in_place=in_place))
    return peak_bytes(steps, sizes)
