"""Explicit Q/DQ in a float32 graph: integers around the linear layers, nothing else touched.

Weights become int8 initialisers with a DequantizeLinear per output channel (per row of an
embedding, before its Gather); activations that enter an int8 product get one QuantizeLinear and
DequantizeLinear per value, shared by the products that read it. Everything is symmetric, in
[-127, 127] for weights (so that -w is representable) and [-128, 127] for activations, zero point 0.
A product never gets a Q behind it, so norms, softmax, attention products and the residual stream
stay in floating point.

Scales are float32 here but exact in float16, so that a graph typed later (float16 scales beside
float16 values, which TensorRT 10.3 demands) computes with the same numbers.

Source of the rules: NvInfer.h of TensorRT 10.3 (IQuantizeLayer, IDequantizeLayer); of the
placement: NVIDIA's ModelOpt, which does the same for convolutional graphs. ModelOpt itself and
onnxruntime.quantization are not used: both place Q/DQ by operator type, with scales from a plain
loop over a data reader, and neither stores a tied embedding once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ...runtime.errors import CalibrationError
from ..graphs import array_of, constant, lazy_constant, make_node, remove_unused, values_of
from ..layers import FLOAT16_LIMIT, LEAST_HALF_STEP, WeightLayer, channel_steps, round_matrix
from ..recipe import GraphRecipe, LayerRecipe

MOST_SCALE = FLOAT16_LIMIT / 128
"""The lowest integer is -128, and this is exact in float16."""
ZERO = "int8.zero"


def quantize(model: ir.Model, layers: Sequence[WeightLayer], recipe: GraphRecipe) -> ir.Model:
    """Returns a float32 graph with Q/DQ as the recipe says; the given one stays as it is.

    Args:
        model: Float32, activations already smoothed if the recipe's alphas say so.
        layers: What `find_layers` found in it.
        recipe: Names every layer; int8 layers have a scale.

    Raises:
        CalibrationError: A scale is missing, or beyond what float16 can hold.
    """
    made = model.clone()
    values = values_of(made)
    quantized: dict[tuple[str, float], ir.Value] = {}
    for layer in layers:
        what = recipe.layers[layer.name]
        if what.precision == "float":
            continue
        weight = values[layer.weight]
        weight.replace_all_uses_with(_stored(made.graph, weight, layer.out_axis))
        if what.precision == "int8":
            scale = activation_scale(layer, what)
            for output, name in zip(layer.products, layer.inputs, strict=True):
                if (name, scale) not in quantized:
                    place = sum(known == name for known, _ in quantized)
                    quantized[name, scale] = _rounded(made.graph, values[name], scale, place)
                product = values[output].producer()
                assert product is not None
                product.replace_input_with(0, quantized[name, scale])
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


def _stored(graph: ir.Graph, weight: ir.Value, axis: int) -> ir.Value:
    """Adds a weight as int8 with its DequantizeLinear; returns what that computes."""
    name, array = weight.name, array_of(weight)
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


def _rounded(graph: ir.Graph, value: ir.Value, step: float, place: int) -> ir.Value:
    """Returns a value after Q and DQ; `place` counts the value's earlier scales."""
    name = f"{value.name}.q{place or ''}"
    scale = constant(graph, f"{name}.scale", np.array(step, np.float32))
    zero = constant(graph, ZERO, np.array(0, np.int8))
    down = make_node("QuantizeLinear", [value, scale, zero], name)
    back = make_node("DequantizeLinear", [down.outputs[0], scale, zero], f"{name}.dq")
    maker = value.producer()
    if maker is None:
        graph.insert_before(graph[0], [down, back])
    else:
        graph.insert_after(maker, [down, back])
    return back.outputs[0]
