"""The form for CPUs: integer products with scales taken in each run, in standard operators.

| precision | graph |
|---|---|
| int8 | DynamicQuantizeLinear of the activation, MatMulInteger, Cast, Mul by both scales |
| int8, row scales | QuantizeLinear by each row's largest, MatMulInteger, DequantizeLinear, Mul |
| int8-weight | the int8 matrix, Cast, Mul by its scales; MatMul |
| embedding | Gather of int8 rows and of their scales, Cast, Mul |
| float, fp16 | what was there; large matrices stored as float16 |

ONNX Runtime fuses the nodes of an int8 product, unless rows have scales, into one call of MLAS, and
folds those of a matrix stored as int8 while it loads: that is small on disk, but float32 in memory
and in arithmetic.
Weights are symmetric, one scale per output channel (per row of an embedding). A tied embedding is
stored once, as rows; its Transpose is folded while loading.

Why this form. Measured with ONNX Runtime 1.31 on one AVX512-VNNI thread, 384 x 6, vocabulary 8,192,
block 32, against float32 in one interleaved run: 2.0 to 2.2 times as fast, static Q/DQ the same
(2.0 to 2.1), MatMulNBits with int8 arithmetic 1.3 to 1.5 (8 and 4 bits, blocks of 32 to 128). On a
trained 256 x 4 model the loss of dynamic scales is less than half that of static ones.

Why row scales. One scale for all rows of a run makes a row's values depend on what shares the run
with it, so that a draft would be verified by other logits than causal decoding has. With a scale
per row the integer products are those of the row alone. Measured as above on products alone: 1.02
(896 x 4864) to 1.2 times (256 x 704) the time of fused ones, so only graphs that need it are so.

Why 7 bits where the CPU that will run the graph is not known: without VNNI, x86 kernels multiply
with vpmaddubsw, which adds two products of uint8 and int8 into an int16 and saturates.
2 x 255 x 127 is beyond 32,767, 2 x 255 x 64 is not. `weight_limit` tries this machine's kernels
instead where the graph stays on this machine.

onnxruntime.quantization's quantize_dynamic writes the same nodes, but goes by operator type, leaves
embeddings in float32, stores a tied one twice, and reads and writes files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ...runtime.errors import CalibrationError
from ..graphs import (
    array_of,
    cast,
    constant,
    lazy_constant,
    make_node,
    open_session,
    remove_unused,
    replace_node,
    values_of,
)
from ..layers import WeightLayer, channel_steps, round_matrix
from ..recipe import GraphRecipe, LayerRecipe
from .base import Cache
from .float16 import store_fp16

FULL_RANGE = 127
SAFE_RANGE = 64
"""Weights of 7 bits and a sign: no pair of products leaves int16."""
_MIDDLE = 128
"""Stands for 0 where rows of uint8 have a scale each."""
FLOAT, INT8 = ir.DataType.FLOAT, ir.DataType.INT8


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuForm:
    """Standard operators, arithmetic in integers and float32."""

    weight_limit: int = SAFE_RANGE
    """127, or 64 for CPUs whose kernels may saturate."""
    row_scales: bool = False
    """Whether each row of an activation has a scale, so that no row depends on another one."""
    dynamic = True

    def default_recipe(self, layers: Iterable[WeightLayer]) -> GraphRecipe:
        """Heads multiply integers too: they are a quarter of the work at 384 x 6 x 8,192."""
        recipes = {}
        for layer in layers:
            reason = "" if layer.quantizable else "conditioning"
            recipes[layer.name] = LayerRecipe(precision=layer.precisions[0], reason=reason)
        return GraphRecipe(layers=recipes)

    def half_values(self, model: ir.Model) -> tuple[str, ...]:
        del model  # arithmetic stays in float32, where everything fits
        return ()

    def fp16(self, model: ir.Model, float32: Sequence[str], cache: Cache) -> ir.Model:
        del float32, cache
        made = model.clone()
        store_fp16(made)
        return made

    def int8(
        self, model: ir.Model, layers: Iterable[WeightLayer], recipe: GraphRecipe, cache: Cache
    ) -> ir.Model:
        del cache
        made = quantize_for_cpu(
            model, layers, recipe, limit=self.weight_limit, row_scales=self.row_scales
        )
        store_fp16(made)  # what stays in floating point takes half the bytes, as without int8
        return made


def weight_limit(target: str) -> int:
    """Returns the largest integer of a weight that is safe where the bundle will run.

    Args:
        target: `host` is this machine, whose kernels are tried; any other may be any CPU.
    """
    return FULL_RANGE if target == "host" and not kernels_saturate() else SAFE_RANGE


def kernels_saturate() -> bool:
    """Tries whether this machine's integer products lose what does not fit into int16."""
    depth, width = 64, 32
    given = ir.val("a", ir.DataType.UINT8, ["rows", depth])
    weights = ir.val("w", const_value=ir.tensor(np.full((depth, width), FULL_RANGE, np.int8)))
    product = make_node("MatMulInteger", [given, weights], "y")
    product.outputs[0].dtype, product.outputs[0].shape = (
        ir.DataType.INT32,
        ir.Shape(["rows", width]),
    )
    graph = ir.Graph(
        [given],
        product.outputs,
        nodes=[product],
        initializers=[weights],
        opset_imports={"": 20},
        name="saturates",
    )
    session = open_session(ir.Model(graph, ir_version=10))
    # Kernels differ by the number of rows.
    return any(
        bool((session.run(None, {"a": np.full((rows, depth), 255, np.uint8)})[0]
              != 255 * FULL_RANGE * depth).any())
        for rows in (1, 4, 32)
    )  # fmt: skip


def quantize_for_cpu(
    model: ir.Model,
    layers: Iterable[WeightLayer],
    recipe: GraphRecipe,
    *,
    limit: int = SAFE_RANGE,
    row_scales: bool = False,
) -> ir.Model:
    """Returns a graph quantised as the recipe says; the given one stays as it is.

    Args:
        model: Float32, smoothed if the recipe's alphas say so.
        layers: What `find_layers` found in it.
        recipe: Names every layer. Int8 layers have no scale: each run takes its own.
        limit: Largest integer of a weight: 127, or 64 for CPUs whose kernels may saturate.
        row_scales: A scale for each row of an activation (its last axis but one) instead of one
            for all, symmetric: no row then depends on the others of its run.

    Raises:
        CalibrationError: A layer has a fixed scale.
    """
    made = model.clone()
    writer = _Writer(made, limit, row_scales)
    for layer in layers:
        what = recipe.layers[layer.name]
        if what.scale is not None:
            raise fixed_scale(layer.name, what.scale)
        if what.precision != "float":
            writer.write(layer, integer=what.precision == "int8")
    remove_unused(made)
    made.graph.sort()
    return made


def fixed_scale(name: str, scale: float) -> CalibrationError:
    """Says that a layer's scale has no place where each run takes its own."""
    return CalibrationError(
        f"layer {name} of the recipe has a fixed scale of {scale:g}, but on a CPU each run takes "
        'its own: remove "scale"'
    )


class _Writer:
    """Rewrites one graph in place; each weight and each activation is quantised once."""

    def __init__(self, model: ir.Model, limit: int, row_scales: bool) -> None:
        self._graph, self._limit = model.graph, limit
        self._values = values_of(model)
        self._code = self._coded_rows if row_scales else self._coded
        self._rescale = self._rescaled_rows if row_scales else self._rescaled
        self._codes: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}

    def write(self, layer: WeightLayer, *, integer: bool) -> None:
        """Stores a layer's matrix as int8 and rewrites whatever reads it."""
        array, axis, limit = array_of(self._values[layer.weight]), layer.out_axis, self._limit
        steps = channel_steps(array, axis, limit)
        stored = lazy_constant(
            self._graph,
            f"{layer.weight}.int8",
            lambda: round_matrix(array, steps, axis, limit),
            INT8,
            array.shape,
        )
        scales = constant(self._graph, f"{layer.weight}.scale", steps)
        for name in layer.lookups:
            self._look_up(self._node(name), stored, scales)
        if not layer.products:
            return
        matrix = stored
        if axis == 0:
            matrix = self._first("Transpose", [stored], f"{layer.weight}.columns", perm=[1, 0])
        if integer:
            self._multiply(layer, lambda node, name: self._integer(node, name, matrix, scales))
            return
        wide = self._first("Cast", [matrix], f"{layer.weight}.float", to=int(FLOAT))
        wide = self._first("Mul", [wide, scales], f"{layer.weight}.wide")
        self._multiply(
            layer, lambda node, name: [make_node("MatMul", [node.inputs[0], wide], name)]
        )

    def _multiply(
        self, layer: WeightLayer, product: Callable[[ir.Node, str], list[ir.Node]]
    ) -> None:
        """Replaces a layer's products; the bias of a Gemm is added behind."""
        for output in layer.products:
            node = self._node(output)
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            nodes = product(node, output if bias is None else f"{output}.product")
            if bias is not None:
                nodes.append(make_node("Add", [nodes[-1].outputs[0], bias], output))
            replace_node(node, nodes)
            self._values[output] = nodes[-1].outputs[0]

    def _look_up(self, node: ir.Node, stored: ir.Value, scales: ir.Value) -> None:
        """Reads int8 rows and their scales instead of float32 rows."""
        ids, output = node.inputs[1], node.outputs[0].name
        assert ids is not None
        axis = constant(self._graph, "rows.axis", np.array([-1], np.int64))
        rows = make_node("Gather", [stored, ids], f"{output}.int8")
        wide = cast(rows.outputs[0], f"{output}.float", FLOAT)
        steps = make_node("Gather", [scales, ids], f"{output}.steps")
        scale = make_node("Unsqueeze", [steps.outputs[0], axis], f"{output}.scale")
        found = make_node("Mul", [wide.outputs[0], scale.outputs[0]], str(output))
        replace_node(node, [rows, wide, steps, scale, found])
        self._values[str(output)] = found.outputs[0]

    def _integer(
        self, node: ir.Node, product: str, matrix: ir.Value, scales: ir.Value
    ) -> list[ir.Node]:
        """Returns the nodes that multiply integers, in the order that ONNX Runtime fuses."""
        value, output = node.inputs[0], str(node.outputs[0].name)
        assert value is not None
        if value not in self._codes:
            self._codes[value] = self._code(value)
        coded, step, zero = self._codes[value]
        whole = make_node("MatMulInteger", [coded, matrix, zero], f"{output}.int32")
        return [whole, *self._rescale(whole.outputs[0], step, scales, output, product)]

    def _rescaled(
        self, whole: ir.Value, step: ir.Value, scales: ir.Value, output: str, product: str
    ) -> list[ir.Node]:
        wide = cast(whole, f"{output}.float", FLOAT)
        scale = make_node("Mul", [step, scales], f"{output}.scale")
        return [wide, scale, make_node("Mul", [wide.outputs[0], scale.outputs[0]], product)]

    def _rescaled_rows(
        self, whole: ir.Value, step: ir.Value, scales: ir.Value, output: str, product: str
    ) -> list[ir.Node]:
        wide = make_node("DequantizeLinear", [whole, step], f"{output}.float", axis=-2)
        return [wide, make_node("Mul", [wide.outputs[0], scales], product)]

    def _coded(self, value: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Returns an activation as uint8, its one scale and its zero."""
        outputs = [ir.Value(name=f"{value.name}.{part}") for part in ("uint8", "step", "zero")]
        node = ir.node("DynamicQuantizeLinear", [value], outputs=outputs, name=outputs[0].name)
        self._behind(value, [node])
        return outputs[0], outputs[1], outputs[2]

    def _coded_rows(self, value: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Returns an activation (1, rows, inner) as uint8, its scales (rows,) and its zero.

        A row of zeros has the scale 0, which gives 0 whatever integers it was divided into.
        """
        name = value.name
        last = constant(self._graph, "int8.last", np.array([-1], np.int64))
        share = constant(self._graph, "int8.share", np.array(1 / 127, np.float32))
        size = make_node("Abs", [value], f"{name}.abs")
        top = make_node("ReduceMax", [size.outputs[0], last], f"{name}.top", keepdims=0)
        scaled = make_node("Mul", [top.outputs[0], share], f"{name}.share")
        step = make_node("Reshape", [scaled.outputs[0], last], f"{name}.step")
        # Both are folded where shapes are known.
        rows = make_node("Shape", [step.outputs[0]], f"{name}.rows")
        zeros = make_node(
            "ConstantOfShape",
            [rows.outputs[0]],
            f"{name}.zeros",
            value=ir.tensor(np.array([_MIDDLE], np.uint8)),
        )
        inputs = [value, step.outputs[0], zeros.outputs[0]]
        coded = make_node("QuantizeLinear", inputs, f"{name}.uint8", axis=-2)
        self._behind(value, [size, top, scaled, step, rows, zeros, coded])
        zero = constant(self._graph, "int8.zero", np.array(_MIDDLE, np.uint8))
        return coded.outputs[0], step.outputs[0], zero

    def _node(self, output: str) -> ir.Node:
        node = self._values[output].producer()
        assert node is not None
        return node

    def _first(self, op: str, inputs: list[ir.Value], output: str, **attributes: Any) -> ir.Value:
        """Adds a node in front of all others."""
        node = make_node(op, inputs, output, **attributes)
        self._graph.insert_before(self._graph[0], node)
        return node.outputs[0]

    def _behind(self, value: ir.Value, nodes: list[ir.Node]) -> None:
        """Adds nodes directly behind the one that makes a value."""
        maker = value.producer()
        if maker is None:
            self._graph.insert_before(self._graph[0], nodes)
        else:
            self._graph.insert_after(maker, nodes)
