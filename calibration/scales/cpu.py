"""The recipe for CPUs: integer products with scales taken in each run, in standard operators.

| precision | what stands in the graph |
|---|---|
| int8 | DynamicQuantizeLinear of the activation, MatMulInteger, Cast, Mul by both scales |
| int8, rows apart | QuantizeLinear by each row's largest, MatMulInteger, DequantizeLinear, Mul |
| int8-weight | the int8 matrix, Cast, Mul by its scales; MatMul |
| looked up (embedding) | Gather of int8 rows and of their scales, Cast, Mul |
| float | what was there |

ONNX Runtime fuses the nodes of an int8 product, unless rows are apart, into one call of MLAS, and
folds those of a matrix stored as int8 while it loads: that is small on disk, but float32 in memory
and in arithmetic.
Weights are symmetric, one scale per output channel (per row of an embedding). A tied embedding is
stored once, as rows; its Transpose is folded while loading.

Why this form. Measured with ONNX Runtime 1.31 on one AVX512-VNNI thread, 384 x 6, vocabulary 8,192,
block 32, against float32 in one interleaved run: 2.0 to 2.2 times as fast, static Q/DQ the same
(2.0 to 2.1), MatMulNBits with int8 arithmetic 1.3 to 1.5 (8 and 4 bits, blocks of 32 to 128). On a
trained 256 x 4 model the loss of dynamic scales is less than half that of static ones.

Why rows apart. One scale for all rows of a run makes a row's values depend on what shares the run
with it, so that a draft would be verified by other logits than causal decoding has. With a scale
per row the integer products are those of the row alone. Measured as above on products alone: 1.02
(896 x 4864) to 1.2 times (256 x 704) the time of fused ones, so only graphs that need it are so.

Why 7 bits where it is not known what will run the graph: without VNNI, x86 kernels multiply with
vpmaddubsw, which adds two products of uint8 and int8 into an int16 and saturates. 2 x 255 x 127
is beyond 32,767, 2 x 255 x 64 is not. `weight_limit` asks this machine's kernels instead where the
graph stays on this machine.

onnxruntime.quantization's quantize_dynamic writes the same nodes, but goes by operator type, leaves
embeddings in float32, stores a tied one twice, and reads and writes files.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ...runtime.engines.onnxruntime import import_backend
from .linears import Layer
from .plan import GraphPlan, LayerPlan, fixed_scale
from .weights import quantize_matrix

FULL_RANGE = 127
SAFE_RANGE = 64
"""Weights of 7 bits and a sign: no pair of products leaves int16."""
_MIDDLE = 128
"""Stands for 0 where rows of uint8 have a scale each."""


def cpu_plan(layers: Iterable[Layer]) -> GraphPlan:
    """Plans every layer as small as it should be: before any measurement.

    Heads multiply integers, too: a quarter of the work at 384 x 6 and a vocabulary of 8,192.
    """
    plans = {}
    for layer in layers:
        reason = "" if layer.quantizable else "conditioning"
        plans[layer.name] = LayerPlan(precision=layer.precisions[0], reason=reason)
    return GraphPlan(layers=plans)


def weight_limit(target: str) -> int:
    """Returns the largest integer of a weight that is safe where the bundle will run.

    Args:
        target: `host` is this machine, whose kernels are tried; any other may be any CPU.
    """
    return FULL_RANGE if target == "host" and not kernels_saturate() else SAFE_RANGE


def kernels_saturate() -> bool:
    """Tries whether this machine's integer products lose what does not fit into int16."""
    backend = import_backend()
    depth, width = 64, 32
    weights = np.full((depth, width), FULL_RANGE, np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "w", "zero"], ["y"])],
        "saturates",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, ["rows", depth])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, ["rows", width])],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.array(0, np.uint8), "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = backend.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"], enable_fallback=0
    )
    # Kernels differ by the number of rows.
    return any(
        bool((session.run(None, {"a": np.full((rows, depth), 255, np.uint8)})[0]
              != 255 * FULL_RANGE * depth).any())
        for rows in (1, 4, 32)
    )  # fmt: skip


def quantize_for_cpu(
    model: onnx.ModelProto,
    layers: Iterable[Layer],
    plan: GraphPlan,
    *,
    limit: int = SAFE_RANGE,
    rows_apart: bool = False,
) -> onnx.ModelProto:
    """Returns a graph quantised as planned; the given one stays as it is.

    Args:
        model: Float32, smoothed if the plan's alphas say so.
        layers: What `find_layers` found in it.
        plan: Names every layer. Int8 layers have no scale: each run takes its own.
        limit: Largest integer of a weight: 127, or 64 for CPUs whose kernels may saturate.
        rows_apart: A scale for each row of an activation (its last axis but one) instead of one
            for all, symmetric: no row then depends on the others of its run.

    Raises:
        CalibrationError: A layer has a fixed scale.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    writer = _Writer(made.graph, limit, rows_apart)
    for layer in layers:
        what = plan.layers[layer.name]
        if what.scale is not None:
            raise fixed_scale(layer.name, what.scale)
        if what.precision != "float":
            writer.write(layer, integer=what.precision == "int8")
    writer.finish()
    return made


class _Writer:
    """Rewrites one graph in place."""

    def __init__(self, graph: onnx.GraphProto, limit: int, rows_apart: bool) -> None:
        self._graph, self._limit, self._rows_apart = graph, limit, rows_apart
        self._items = {item.name: item for item in graph.initializer}
        self._makers = {node.output[0]: node for node in graph.node}
        self._instead: dict[str, list[onnx.NodeProto]] = {}
        self._behind: dict[str, list[onnx.NodeProto]] = {}
        self._before: list[onnx.NodeProto] = []

    def write(self, layer: Layer, *, integer: bool) -> None:
        """Stores a layer's matrix as int8 and rewrites whatever reads it."""
        array = numpy_helper.to_array(self._items[layer.weight])
        values, scales = quantize_matrix(array, layer.out_axis, self._limit)
        stored = self._constant(f"{layer.weight}.int8", values)
        steps = self._constant(f"{layer.weight}.scale", scales)
        for output in layer.lookups:
            self._look_up(output, stored, steps)
        if not layer.products:
            return
        matrix = stored
        if layer.out_axis == 0:
            matrix = f"{layer.weight}.columns"
            self._before.append(_node("Transpose", [stored], matrix, perm=[1, 0]))
        wide = f"{layer.weight}.wide"
        if not integer:
            self._before.append(_cast(matrix, f"{layer.weight}.float"))
            self._before.append(_node("Mul", [f"{layer.weight}.float", steps], wide))
        for output, value in zip(layer.products, layer.inputs, strict=True):
            bias = list(self._makers[output].input[2:])
            if integer:
                self._instead[output] = self._integer_product(value, matrix, steps, output, bias)
            else:
                product = f"{output}.product" if bias else output
                self._instead[output] = [
                    _node("MatMul", [value, wide], product),
                    *(_node("Add", [product, name], output) for name in bias),
                ]

    def _look_up(self, output: str, stored: str, steps: str) -> None:
        """Reads int8 rows and their scales instead of float32 rows."""
        ids = self._makers[output].input[1]
        axis = self._constant("rows.axis", np.array([-1], np.int64))
        self._instead[output] = [
            _node("Gather", [stored, ids], f"{output}.int8"),
            _cast(f"{output}.int8", f"{output}.float"),
            _node("Gather", [steps, ids], f"{output}.steps"),
            _node("Unsqueeze", [f"{output}.steps", axis], f"{output}.scale"),
            _node("Mul", [f"{output}.float", f"{output}.scale"], output),
        ]

    def _integer_product(
        self, value: str, matrix: str, steps: str, output: str, bias: list[str]
    ) -> list[onnx.NodeProto]:
        """Gives the nodes that multiply integers, in the order that ONNX Runtime fuses."""
        product, whole = f"{output}.product" if bias else output, f"{output}.int32"
        wide, scale = f"{output}.float", f"{output}.scale"
        coded, step, zero = (self._coded_rows if self._rows_apart else self._coded)(value)
        nodes = [_node("MatMulInteger", [coded, matrix, zero], whole)]
        if self._rows_apart:
            nodes += [
                _node("DequantizeLinear", [whole, step], wide, axis=-2),
                _node("Mul", [wide, steps], product),
            ]
        else:
            nodes += [
                _cast(whole, wide),
                _node("Mul", [step, steps], scale),
                _node("Mul", [wide, scale], product),
            ]
        return [*nodes, *(_node("Add", [product, name], output) for name in bias)]

    def _coded(self, value: str) -> tuple[str, str, str]:
        """Names an activation as uint8, its one scale and its zero."""
        parts = (f"{value}.uint8", f"{value}.step", f"{value}.zero")
        if value not in self._behind:
            node = helper.make_node("DynamicQuantizeLinear", [value], parts, name=parts[0])
            self._behind[value] = [node]
        return parts

    def _coded_rows(self, value: str) -> tuple[str, str, str]:
        """Names an activation (1, rows, inner) as uint8, its scales (rows,) and its zero.

        A row of zeros has the scale 0, which gives 0 whatever integers it was divided into.
        """
        coded, step = f"{value}.uint8", f"{value}.step"
        if value not in self._behind:
            last = self._constant("int8.last", np.array([-1], np.int64))
            share = self._constant("int8.share", np.array(1 / 127, np.float32))
            zero = numpy_helper.from_array(np.array([_MIDDLE], np.uint8))
            top, zeros = f"{value}.top", f"{value}.zeros"
            self._behind[value] = [
                _node("Abs", [value], f"{value}.abs"),
                _node("ReduceMax", [f"{value}.abs", last], top, keepdims=0),
                _node("Mul", [top, share], f"{value}.share"),
                _node("Reshape", [f"{value}.share", last], step),
                _node("Shape", [step], f"{value}.rows"),  # both folded where shapes are known
                _node("ConstantOfShape", [f"{value}.rows"], zeros, value=zero),
                _node("QuantizeLinear", [value, step, zeros], coded, axis=-2),
            ]
        return coded, step, self._constant("int8.zero", np.array(_MIDDLE, np.uint8))

    def finish(self) -> None:
        """Puts the nodes in order and drops what nobody reads any more."""
        # A value that is a graph input is quantised before everything else.
        inputs = {item.name for item in self._graph.input}
        nodes = [node for name in inputs for node in self._behind.get(name, [])]
        nodes += self._before
        for node in self._graph.node:
            nodes += self._instead.get(node.output[0], [node])
            nodes += [made for name in node.output for made in self._behind.get(name, [])]
        wanted = {item.name for item in self._graph.output}
        kept: list[onnx.NodeProto] = []
        for node in reversed(nodes):
            if wanted.intersection(node.output):
                kept.append(node)
                wanted.update(node.input)
        del self._graph.node[:]
        self._graph.node.extend(reversed(kept))
        items = [item for item in self._graph.initializer if item.name in wanted]
        del self._graph.initializer[:]
        self._graph.initializer.extend(items)

    def _constant(self, name: str, array: np.ndarray) -> str:
        if name not in self._items:
            self._items[name] = numpy_helper.from_array(array, name)
            self._graph.initializer.append(self._items[name])
        return name


def _node(op: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=output, **attributes)


def _cast(source: str, target: str) -> onnx.NodeProto:
    return _node("Cast", [source], target, to=TensorProto.FLOAT)
