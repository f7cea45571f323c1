"""The form for CPUs: integer products with scales taken in each run.

| precision | graph |
|---|---|
| int8 | QuantizeLinear by each row's largest, MatMulInteger, DequantizeLinear, Mul |
| int8, outliers | the same without these channels, and a float product of them alone, added |
| int4 | MatMulNBits with int8 arithmetic; a thin float product where lows are not -8 steps |
| int8-weight | the int8 matrix, Cast, Mul by its scales; MatMul |
| embedding | Gather of int8 rows and of their scales, Cast, Mul |
| float, fp16 | what was there; large matrices stored as float16 |

Weights are symmetric, one scale per output channel (per row of an embedding). A tied embedding is
stored once, as rows; its Transpose is folded while loading. ONNX Runtime also folds the nodes of a
matrix stored as int8-weight: that is small on disk, but float32 in memory and in arithmetic.

Why a scale per row of an activation. One scale for all rows of a run makes a row's values depend on
what shares the run with it, so that a text would depend on its batch, and a draft would be verified
by other logits than causal decoding has. With a scale per row the integer products are those of the
row alone. Measured with ONNX Runtime 1.31 on one AVX512-VNNI thread: products alone take 1.02
(896 x 4864) to 1.2 times (256 x 704) the time of fused ones with one scale.

Why outliers. In pretrained models a few input channels of a layer are a thousand times as large as
the others, and a row's scale follows the largest. Kept out of the integer product, they cost a
Gather and a product as thin as they are few.

Without VNNI, x86 kernels multiply with vpmaddubsw, which adds two products of uint8 and int8 into
an int16 and saturates. The runtime therefore opens sessions with ONNX Runtime's precise mode, in
which such machines take kernels that widen first; others are not affected.

int4 is ONNX Runtime's own operator, MatMulNBits at accuracy level 4: activations are rounded to
int8 by groups of 32 in each row. It multiplies steps * (codes - 8); what a grid's lows add to that
is constant in a group, so it is multiplied by the sums of the groups of the activation. Rows do not
depend on each other's values, but one row alone takes another kernel than several, whose sums
differ by rounding of float32, as float products may.

onnxruntime.quantization's quantize_dynamic goes by operator type, leaves embeddings in float32,
stores a tied one twice, takes one scale per run, and reads and writes files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ...runtime.errors import CalibrationError
from ..graphs import (
    array_of,
    cast,
    constant,
    insert_behind,
    lazy_constant,
    make_node,
    remove_unused,
    replace_node,
    values_of,
)
from ..grids import GROUP, NO_GRIDS, Grid, find_grid, round_to_grid
from ..layers import WeightLayer, channel_steps, round_matrix, without_channels
from ..recipe import GraphRecipe, LayerRecipe
from .base import Cache
from .float16 import store_fp16

_MIDDLE = 128
"""Stands for 0 where rows of uint8 have a scale each."""
CONTRIB = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""
FLOAT, INT8 = ir.DataType.FLOAT, ir.DataType.INT8


@dataclass(frozen=True, slots=True)
class CpuForm:
    """Arithmetic in integers and float32."""

    dynamic = True

    def default_recipe(self, layers: Iterable[WeightLayer], precision: str) -> GraphRecipe:
        """Heads multiply integers too: they are a quarter of the work at 384 x 6 x 8,192."""
        recipes = {}
        for layer in layers:
            reason = "" if layer.quantizable else "conditioning"
            chosen = next(item for item in layer.precisions if item != "int4")
            if precision == "int4" and self.takes_int4(layer) and not layer.head:
                chosen = "int4"
            recipes[layer.name] = LayerRecipe(precision=chosen, reason=reason)
        return GraphRecipe(layers=recipes)

    def find_grid(self, matrix: np.ndarray) -> Grid | None:
        return find_grid(matrix)

    def make_grid(self, matrix: np.ndarray, moments: np.ndarray | None) -> Grid:
        return round_to_grid(matrix, moments)

    def takes_int4(self, layer: WeightLayer) -> bool:
        return layer.fits_grid

    def half_values(self, model: ir.Model) -> tuple[str, ...]:
        del model  # arithmetic stays in float32, where everything fits
        return ()

    def fp16(self, model: ir.Model, float32: Sequence[str], cache: Cache) -> ir.Model:
        del float32, cache
        made = model.clone()
        store_fp16(made)
        return made

    def quantised(
        self,
        model: ir.Model,
        layers: Iterable[WeightLayer],
        recipe: GraphRecipe,
        cache: Cache,
        grids: Mapping[str, Grid] = NO_GRIDS,
    ) -> ir.Model:
        del cache
        made = quantize_for_cpu(model, layers, recipe, grids)
        store_fp16(made)  # what stays in floating point takes half the bytes, as without int8
        return made


def quantize_for_cpu(
    model: ir.Model,
    layers: Iterable[WeightLayer],
    recipe: GraphRecipe,
    grids: Mapping[str, Grid] = NO_GRIDS,
) -> ir.Model:
    """Returns a graph quantised as the recipe says; the given one stays as it is.

    Args:
        model: Float32, smoothed if the recipe's alphas say so.
        layers: What `find_layers` found in it.
        recipe: Names every layer. Int8 layers have no scale: each run takes its own.
        grids: By layer, of those that are int4.

    Raises:
        CalibrationError: A layer has a fixed scale, or an outlier that is no input of it.
    """
    made = model.clone()
    writer = _Writer(made)
    for layer in layers:
        what = recipe.layers[layer.name]
        if what.scale is not None:
            raise fixed_scale(layer.name, what.scale)
        if what.precision == "int4":
            writer.write_grid(layer, grids[layer.name])
        elif what.precision != "float":
            writer.write(layer, what)
    remove_unused(made)
    made.graph.sort()
    return made


def fixed_scale(name: str, scale: float) -> CalibrationError:
    """Says that a layer's scale has no place where each run takes its own."""
    return CalibrationError(
        f"layer {name} of the recipe has a fixed scale of {scale:g}, but on a CPU each run takes "
        'its own: remove "scale"'
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """A matrix as integers, and in floating point for outliers."""

    matrix: ir.Value
    """(inputs, outputs) int8."""
    scales: ir.Value
    """(outputs,)"""
    shape: tuple[int, ...]
    outliers: tuple[int, ...]
    thin: ir.Value | None
    """(outliers, outputs) float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Coded:
    """An activation as integers."""

    rows: ir.Value
    """uint8 around _MIDDLE, 0 for outliers."""
    steps: ir.Value
    """(rows,)"""
    outliers: ir.Value | None
    """(1, rows, outliers)"""
    lead: ir.Value | None
    """(batch, rows) of the activation where rows of several texts share an axis here."""


class _Writer:
    """Rewrites one graph in place; each weight and each activation is quantised once."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._values = values_of(model)
        self._opsets = model.opset_imports
        self._codes: dict[tuple[ir.Value, tuple[int, ...]], _Coded] = {}
        self._sums: dict[ir.Value, ir.Value] = {}

    def write(self, layer: WeightLayer, what: LayerRecipe) -> None:
        """Stores a layer's matrix as int8 and rewrites whatever reads it."""
        exact, axis = array_of(self._values[layer.weight]), layer.out_axis
        outliers = what.outliers if what.precision == "int8" else ()
        # An embedding's rows are read elsewhere too, and equal matrices are stored once.
        array = exact if axis == 0 else without_channels(exact, outliers, 1 - axis)
        steps = channel_steps(array, axis)
        stored = lazy_constant(
            self._graph,
            f"{layer.weight}.int8",
            lambda: round_matrix(array, steps, axis),
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
        if what.precision == "int8":
            inner = layer.by_channel(exact)
            thin = np.ascontiguousarray(inner[list(outliers)])
            stored = _Stored(
                matrix=matrix,
                scales=scales,
                shape=inner.shape,
                outliers=outliers,
                thin=constant(self._graph, f"{layer.weight}.outliers", thin) if outliers else None,
            )
            self._multiply(layer, lambda node, name: self._integer(node, name, stored))
            return
        wide = self._first("Cast", [matrix], f"{layer.weight}.float", to=int(FLOAT))
        wide = self._first("Mul", [wide, scales], f"{layer.weight}.wide")
        self._multiply(
            layer, lambda node, name: [make_node("MatMul", [node.inputs[0], wide], name)]
        )

    def write_grid(self, layer: WeightLayer, grid: Grid) -> None:
        """Stores a layer's matrix as int4 and rewrites the products that read it."""
        self._opsets[CONTRIB] = 1
        name = layer.weight
        packed = constant(self._graph, f"{name}.int4", grid.packed())
        steps = self._stored_flat(f"{name}.step", grid.steps)
        offsets = None
        if (grid.lows + 8 * grid.steps).any():
            lows = self._stored_flat(f"{name}.low", grid.lows)
            # Folded while loading: a sum of two float16 is seldom one.
            middle = constant(self._graph, "int4.middle", np.array(8, np.float32))
            moved = self._first("Mul", [steps, middle], f"{name}.eight")
            flat = self._first("Add", [lows, moved], f"{name}.offset")
            shape = constant(self._graph, f"{name}.groups", np.array(grid.steps.shape, np.int64))
            square = self._first("Reshape", [flat, shape], f"{name}.offsets")
            offsets = self._first("Transpose", [square], f"{name}.thin", perm=[1, 0])
        sizes = {"K": layer.num_inputs, "N": len(grid.codes), "bits": 4, "block_size": GROUP}

        def product(node: ir.Node, output: str) -> list[ir.Node]:
            value, old = node.inputs[0], node.outputs[0]
            assert value is not None
            whole = ir.Value(
                name=output if offsets is None else f"{output}.most", type=old.type, shape=old.shape
            )
            nodes = [
                ir.node(
                    "MatMulNBits",
                    [value, packed, steps],
                    {**sizes, "accuracy_level": 4},
                    domain=CONTRIB,
                    outputs=[whole],
                    name=whole.name,
                )
            ]
            if offsets is not None:
                few = make_node("MatMul", [self._summed(value), offsets], f"{output}.few")
                nodes += [few, make_node("Add", [whole, few.outputs[0]], output)]
            return nodes

        self._multiply(layer, product)

    def _stored_flat(self, name: str, array: np.ndarray) -> ir.Value:
        """Stores a vector as float16 where that is exact; returns it as float32."""
        flat = array.ravel()
        half = flat.astype(np.float16)
        if (half != flat).any():
            return constant(self._graph, name, flat)
        return self._first(
            "Cast", [constant(self._graph, f"{name}.fp16", half)], name, to=int(FLOAT)
        )

    def _summed(self, value: ir.Value) -> ir.Value:
        """Returns the sums of the groups of an activation (batch, rows, groups)."""
        if value not in self._sums:
            sizes = constant(self._graph, "int4.sizes", np.array([0, 0, -1, GROUP], np.int64))
            last = constant(self._graph, "int8.last", np.array([-1], np.int64))
            split = make_node("Reshape", [value, sizes], f"{value.name}.groups")
            total = make_node(
                "ReduceSum", [split.outputs[0], last], f"{value.name}.sums", keepdims=0
            )
            insert_behind(self._graph, value, [split, total])
            self._sums[value] = total.outputs[0]
        return self._sums[value]

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

    def _integer(self, node: ir.Node, product: str, stored: _Stored) -> list[ir.Node]:
        """Returns the nodes that multiply integers, and outliers beside them."""
        value, output = node.inputs[0], str(node.outputs[0].name)
        assert value is not None
        key = (value, stored.outliers)
        if key not in self._codes:
            self._codes[key] = self._coded(value, stored.shape[0], stored.outliers)
        coded = self._codes[key]
        flat = product if coded.lead is None else f"{output}.flat"
        most = flat if stored.thin is None else f"{output}.most"
        zero = constant(self._graph, "int8.zero", np.array(_MIDDLE, np.uint8))
        whole = make_node("MatMulInteger", [coded.rows, stored.matrix, zero], f"{output}.int32")
        wide = make_node(
            "DequantizeLinear", [whole.outputs[0], coded.steps], f"{output}.float", axis=-2
        )
        nodes = [whole, wide, make_node("Mul", [wide.outputs[0], stored.scales], most)]
        if stored.thin is not None:
            few = make_node("MatMul", [coded.outliers, stored.thin], f"{output}.few")
            nodes += [few, make_node("Add", [nodes[-1].outputs[0], few.outputs[0]], flat)]
        if coded.lead is not None:
            width = np.array(stored.shape[1:], np.int64)
            width = constant(self._graph, f"int8.width{stored.shape[1]}", width)
            shape = make_node("Concat", [coded.lead, width], f"{output}.shape", axis=0)
            back = make_node("Reshape", [nodes[-1].outputs[0], shape.outputs[0]], product)
            nodes += [shape, back]
        return nodes

    def _coded(self, value: ir.Value, width: int, outliers: tuple[int, ...]) -> _Coded:
        """Codes an activation (batch, rows, width), outliers apart.

        A row of zeros has the scale 0, which gives 0 whatever integers it was divided into.
        """
        name = f"{value.name}.but{len(self._codes)}" if outliers else str(value.name)
        last = constant(self._graph, "int8.last", np.array([-1], np.int64))
        share = constant(self._graph, "int8.share", np.array(1 / 127, np.float32))
        nodes, lead, few = [], None, None
        flat = value
        if value.shape is None or value.shape[0] != 1:  # rows of all texts in one axis
            lead = make_node("Shape", [value], f"{name}.lead", start=0, end=-1)
            sizes = constant(self._graph, f"int8.by{width}", np.array([1, -1, width], np.int64))
            nodes += [lead, make_node("Reshape", [value, sizes], f"{name}.flat")]
            flat, lead = nodes[-1].outputs[0], lead.outputs[0]
        kept = flat
        if outliers:
            places = constant(self._graph, f"{name}.places", np.array(outliers, np.int64))
            nodes.append(make_node("Gather", [flat, places], f"{name}.outliers", axis=-1))
            few = nodes[-1].outputs[0]
            mask = np.ones(width, np.float32)
            mask[list(outliers)] = 0
            mask = constant(self._graph, f"{name}.mask", mask)
            nodes.append(make_node("Mul", [flat, mask], f"{name}.kept"))
            kept = nodes[-1].outputs[0]
        size = make_node("Abs", [kept], f"{name}.abs")
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
        inputs = [kept, step.outputs[0], zeros.outputs[0]]
        coded = make_node("QuantizeLinear", inputs, f"{name}.uint8", axis=-2)
        insert_behind(self._graph, value, [*nodes, size, top, scaled, step, rows, zeros, coded])
        return _Coded(rows=coded.outputs[0], steps=step.outputs[0], outliers=few, lead=lead)

    def _node(self, output: str) -> ir.Node:
        node = self._values[output].producer()
        assert node is not None
        return node

    def _first(self, op: str, inputs: list[ir.Value], output: str, **attributes: Any) -> ir.Value:
        """Adds a node in front of all others."""
        node = make_node(op, inputs, output, **attributes)
        self._graph.insert_before(self._graph[0], node)
        return node.outputs[0]
