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

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ...runtime.errors import CalibrationError
from .linears import Layer
from .plan import GraphPlan, LayerPlan
from .weights import FLOAT16_LIMIT, LEAST_HALF_STEP, quantize_matrix

WEIGHT_LIMIT = 127
MOST_SCALE = FLOAT16_LIMIT / 128
"""The lowest integer is -128, and this is exact in float16."""
ZERO = "int8.zero"


def quantize(model: onnx.ModelProto, layers: tuple[Layer, ...], plan: GraphPlan) -> onnx.ModelProto:
    """Returns a float32 graph with Q/DQ as planned; the given one stays as it is.

    Args:
        model: Float32, activations already smoothed if the plan's alphas say so.
        layers: What `find_layers` found in it.
        plan: Names every layer; int8 layers have a scale.

    Raises:
        CalibrationError: A scale is missing, or beyond what float16 can hold.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    work = _Rewriter(made.graph)
    for layer in layers:
        what = plan.layers[layer.name]
        if what.precision == "float":
            continue
        stored = work.store(layer)
        for output in layer.lookups:
            work.replace_input(output, layer.weight, stored)
        for output, value in zip(layer.products, layer.inputs, strict=True):
            work.replace_input(output, layer.weight, stored)
            if what.precision == "int8":
                scale = activation_scale(layer, what)
                work.replace_input(output, value, work.quantized(value, scale))
    work.finish()
    return made


def activation_scale(layer: Layer, plan: LayerPlan) -> float:
    """Returns a planned scale as float16 holds it; CalibrationError if it cannot."""
    if plan.scale is None:
        raise CalibrationError(f"layer {layer.name} is planned as int8 without a scale")
    if plan.scale > MOST_SCALE:
        raise CalibrationError(
            f"the activations that enter {layer.name} reach {plan.scale * 127:.3g}, beyond "
            'float16: plan this layer as "float"'
        )
    return float(np.float16(max(plan.scale, LEAST_HALF_STEP)))


def _rounded(item: onnx.TensorProto, axis: int, name: str) -> tuple[onnx.TensorProto, np.ndarray]:
    """Gives a matrix as an int8 tensor, and its steps; without values, one that has none either."""
    if item.data_location == onnx.TensorProto.EXTERNAL:
        stub = onnx.TensorProto()
        stub.CopyFrom(item)
        stub.name, stub.data_type = name, onnx.TensorProto.INT8
        return stub, np.ones(item.dims[axis], np.float32)
    values, scales = quantize_matrix(numpy_helper.to_array(item), axis, WEIGHT_LIMIT, half=True)
    return numpy_helper.from_array(values, name), scales


class _Rewriter:
    """Changes one graph; each value and each weight is quantised once."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._weights = {item.name: item for item in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output}
        self._before: list[onnx.NodeProto] = []
        self._behind: dict[str, list[onnx.NodeProto]] = {}
        self._quantized: dict[tuple[str, float], str] = {}
        self._dropped: set[str] = set()

    def store(self, layer: Layer) -> str:
        """Replaces a weight by int8 and its DequantizeLinear; returns the latter's output."""
        item = self._weights[layer.weight]
        stored, scales = _rounded(item, layer.out_axis, f"{layer.weight}.int8")
        name = f"{layer.weight}.dequantized"
        inputs = [stored.name, f"{layer.weight}.scale", f"{layer.weight}.zero"]
        self._graph.initializer.append(stored)
        for key, content in zip(inputs[1:], (scales, np.zeros(len(scales), np.int8)), strict=True):
            self._graph.initializer.append(numpy_helper.from_array(content, key))
        self._before.append(
            helper.make_node("DequantizeLinear", inputs, [name], name=name, axis=layer.out_axis)
        )
        self._dropped.add(layer.weight)
        return name

    def quantized(self, value: str, scale: float) -> str:
        """Returns the name of a value after Q and DQ, made on first use."""
        key = (value, scale)
        if key not in self._quantized:
            mark = f"{value}.q{sum(name == value for name, _ in self._quantized) or ''}"
            self._constant(ZERO, np.array(0, np.int8))
            self._constant(f"{mark}.scale", np.array(scale, np.float32))
            common = [f"{mark}.scale", ZERO]
            self._behind.setdefault(value, []).extend(
                (
                    helper.make_node("QuantizeLinear", [value, *common], [mark], name=mark),
                    helper.make_node(
                        "DequantizeLinear", [mark, *common], [f"{mark}.dq"], name=f"{mark}.dq"
                    ),
                )
            )
            self._quantized[key] = f"{mark}.dq"
        return self._quantized[key]

    def replace_input(self, output: str, old: str, new: str) -> None:
        """Makes the node that computes `output` read `new` for `old`, through a Transpose too."""
        node = self._makers[output]
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
            elif name in self._makers and old in self._makers[name].input and old in self._weights:
                turn = self._makers[name]
                if turn.op_type == "Transpose":
                    turn.input[0] = new

    def finish(self) -> None:
        """Puts the new nodes in order and drops weights that nobody reads."""
        nodes = list(self._before)
        for node in self._graph.node:
            nodes.append(node)
            for name in node.output:
                nodes += self._behind.pop(name, [])
        # What is left quantises graph inputs.
        nodes = [node for made in self._behind.values() for node in made] + nodes
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        used = {name for node in nodes for name in node.input}
        kept = [
            item
            for item in self._graph.initializer
            if item.name in used or item.name not in self._dropped
        ]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)

    def _constant(self, name: str, array: np.ndarray) -> None:
        if name not in self._weights:
            item = numpy_helper.from_array(array, name)
            self._weights[name] = item
            self._graph.initializer.append(item)
