"""Explicit Q/DQ in a float32 graph: integers around the linear layers, nothing else touched.

Weights become int8 initialisers with a DequantizeLinear per output channel (per row of an
embedding, before its Gather); activations that enter an int8 product get one QuantizeLinear and
DequantizeLinear per value, shared by the products that read it. Everything is symmetric, in
[-127, 127] for weights (so that -w is representable) and [-128, 127] for activations, zero point 0.
A product never gets a Q behind it, so norms, softmax, attention products and the residual stream
stay in floating point.

Outlier channels of a layer have rows of zeros in its int8 matrix, so that what their activations
are rounded to does not matter, and a product of their own in floating point: a Gather, a matrix as
thin as they are few, and an Add.

Weights of 4 bits have a step per group of inputs and output, and activations that stay as they are.

Scales are float32 here but exact in float16, so that a graph typed later (float16 scales beside
float16 values, which TensorRT 10.3 demands) computes with the same numbers.

Source of the rules: NvInfer.h of TensorRT 10.3 (IQuantizeLayer, IDequantizeLayer); of the
placement: NVIDIA's ModelOpt, which does the same for convolutional graphs. ModelOpt itself and
onnxruntime.quantization are not used: both place Q/DQ by operator type, with scales from a plain
loop over a data reader, and neither stores a tied embedding once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ...runtime.errors import CalibrationError
from ..graphs import (
    array_of,
    constant,
    insert_behind,
    lazy_constant,
    make_node,
    remove_unused,
    replace_node,
    values_of,
)
from ..grids import NO_GRIDS, Grid
from ..layers import (
    FLOAT16_LIMIT,
    LEAST_HALF_STEP,
    WeightLayer,
    channel_steps,
    round_matrix,
    without_channels,
)
from ..recipe import GraphRecipe, LayerRecipe

MOST_SCALE = FLOAT16_LIMIT / 128
"""The lowest integer is -128, and this is exact in float16."""
ZERO = "int8.zero"
INT4_OPSET = 21
"""The first one with blocks of int4."""


def quantize(
    model: ir.Model,
    layers: Sequence[WeightLayer],
    recipe: GraphRecipe,
    grids: Mapping[str, Grid] = NO_GRIDS,
) -> ir.Model:
    """Returns a float32 graph with Q/DQ as the recipe says; the given one stays as it is.

    Args:
        model: Float32, activations already smoothed if the recipe's alphas say so.
        layers: What `find_layers` found in it.
        recipe: Names every layer; int8 layers have a scale.
        grids: By layer, of those that are int4: symmetric ones.

    Raises:
        CalibrationError: A scale is missing, or beyond what float16 can hold.
    """
    made = model.clone()
    values = values_of(made)
    quantized: dict[tuple[str, float], ir.Value] = {}
    gathered: dict[tuple[str, tuple[int, ...]], ir.Value] = {}
    for layer in layers:
        what = recipe.layers[layer.name]
        if what.precision == "float":
            continue
        weight = values[layer.weight]
        if what.precision == "int4":
            made.opset_imports[""] = INT4_OPSET
            grid = grids[layer.name]
            weight.replace_all_uses_with(_stored_grid(made.graph, weight, layer.out_axis, grid))
            continue
        outliers = what.outliers if what.precision == "int8" else ()
        inner = layer.by_channel(array_of(weight))
        weight.replace_all_uses_with(_stored(made.graph, weight, layer.out_axis, outliers))
        if what.precision == "int8":
            scale = activation_scale(layer, what)
            for output, name in zip(layer.products, layer.inputs, strict=True):
                if (name, scale) not in quantized:
                    place = sum(known == name for known, _ in quantized)
                    quantized[name, scale] = _rounded(made.graph, values[name], scale, place)
                product = values[output].producer()
                assert product is not None
                product.replace_input_with(0, quantized[name, scale])
                if not outliers:
                    continue
                if (name, outliers) not in gathered:
                    place = sum(known == name for known, _ in gathered)
                    gathered[name, outliers] = _gathered(made.graph, values[name], outliers, place)
                thin = np.ascontiguousarray(inner[list(outliers)])
                thin = constant(made.graph, f"{layer.weight}.outliers", thin)
                values[output] = _added(product, gathered[name, outliers], thin)
    remove_unused(made)
    made.graph.sort()
    return made


def activation_scale(layer: WeightLayer, recipe: LayerRecipe) -> float:
    """Returns a layer's scale as float16 holds it; CalibrationError if it cannot."""
    if recipe.scale is None:
        raise CalibrationError(f"layer {layer.name} is to be int8 but has no scale")
    if recipe.scale > MOST_SCALE:
        raise CalibrationError(
            f"the activations that enter {layer.name} reach {recipe.scale * 127:.3g}, beyond "
            'float16: make this layer "float" in the recipe'
        )
    return float(np.float16(max(recipe.scale, LEAST_HALF_STEP)))


def _stored(graph: ir.Graph, weight: ir.Value, axis: int, outliers: Sequence[int]) -> ir.Value:
    """Adds a weight as int8 with its DequantizeLinear; returns what that computes."""
    name, array = weight.name, without_channels(array_of(weight), outliers, 1 - axis)
    steps = channel_steps(array, axis, half=True)
    stored = lazy_constant(
        graph,
        f"{name}.int8",
        lambda: round_matrix(array, steps, axis),
        ir.DataType.INT8,
        array.shape,
    )
    scale = constant(graph, f"{name}.scale", steps)
    zero = constant(graph, f"{name}.zero", np.zeros(len(steps), np.int8))
    back = make_node("DequantizeLinear", [stored, scale, zero], f"{name}.dequantized", axis=axis)
    graph.insert_before(graph[0], back)
    return back.outputs[0]


def _stored_grid(graph: ir.Graph, weight: ir.Value, axis: int, grid: Grid) -> ir.Value:
    """Adds a weight as int4 with its DequantizeLinear; returns what that computes."""
    name, shape = str(weight.name), array_of(weight).shape

    def turned(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array.T) if axis == 1 else array

    stored = lazy_constant(
        graph,
        f"{name}.int4",
        lambda: turned(grid.signed()).astype(ir.DataType.INT4.numpy()),
        ir.DataType.INT4,
        shape,
    )
    scale = constant(graph, f"{name}.scale", turned(grid.steps))
    back = make_node(
        "DequantizeLinear",
        [stored, scale],
        f"{name}.dequantized",
        axis=1 - axis,
        block_size=grid.codes.shape[2],
    )
    graph.insert_before(graph[0], back)
    return back.outputs[0]


def _gathered(graph: ir.Graph, value: ir.Value, channels: tuple[int, ...], place: int) -> ir.Value:
    """Returns some channels of a value; `place` counts the value's earlier choices."""
    name = f"{value.name}.outliers{place or ''}"
    places = constant(graph, f"{name}.places", np.array(channels, np.int64))
    node = make_node("Gather", [value, places], name, axis=-1)
    insert_behind(graph, value, [node])
    return node.outputs[0]


def _added(product: ir.Node, value: ir.Value, matrix: ir.Value) -> ir.Value:
    """Adds the product of a value with a matrix to another product; returns the sum."""
    output = str(product.outputs[0].name)
    most = ir.node(
        product.op_type,
        product.inputs,
        product.attributes,
        outputs=[ir.Value(name=f"{output}.most")],
        name=f"{output}.most",
    )
    few = make_node("MatMul", [value, matrix], f"{output}.few")
    whole = make_node("Add", [most.outputs[0], few.outputs[0]], output)
    replace_node(product, [most, few, whole])
    return whole.outputs[0]


def _rounded(graph: ir.Graph, value: ir.Value, step: float, place: int) -> ir.Value:
    """Returns a value after Q and DQ; `place` counts the value's earlier scales."""
    name = f"{value.name}.q{place or ''}"
    scale = constant(graph, f"{name}.scale", np.array(step, np.float32))
    zero = constant(graph, ZERO, np.array(0, np.int8))
    down = make_node("QuantizeLinear", [value, scale, zero], name)
    back = make_node("DequantizeLinear", [down.outputs[0], scale, zero], f"{name}.dq")
    insert_behind(graph, value, [down, back])
    return back.outputs[0]
