"""Graphs with a known structure, small enough to compute by hand."""

import numpy as np
import onnx
import onnx_ir as ir
from dlm_edge.calibration.layers import channel_steps, round_matrix
from onnx import TensorProto, helper, numpy_helper

WIDTH, VOCAB, HIDDEN = 8, 12, 16
ROLES = {"ids": "canvas", "time": "time"}


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs, outputs, name=outputs[0], **attributes)


def small_graph(*, tied=True, timed=False, seed=0, scale=1.0):
    """ids -> embedding -> norm weight -> up -> gelu-like -> down -> residual -> head."""
    rng = np.random.default_rng(seed)

    def weight(name, *shape):
        array = (rng.standard_normal(shape) * scale / np.sqrt(shape[0])).astype(np.float32)
        return numpy_helper.from_array(array, name)

    weights = [
        weight("model.embed.weight", VOCAB, WIDTH),
        numpy_helper.from_array(np.ones(WIDTH, np.float32), "model.norm.weight"),
        weight("model.mlp.up.weight", WIDTH, HIDDEN),
        weight("model.mlp.down.weight", HIDDEN, WIDTH),
    ]
    nodes = [
        node("Gather", ["model.embed.weight", "ids"], ["x"]),
        node("Mul", ["x", "model.norm.weight"], ["normed"]),
        node("MatMul", ["normed", "model.mlp.up.weight"], ["up"]),
        node("Sigmoid", ["up"], ["gate"]),
        node("MatMul", ["gate", "model.mlp.down.weight"], ["down"]),
        node("Add", ["x", "down"], ["sum"]),
    ]
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT32, [1, "rows"])]
    last = "sum"
    if timed:
        inputs.append(helper.make_tensor_value_info("time", TensorProto.FLOAT, [1, 4]))
        weights.append(weight("model.time.weight", 4, WIDTH))
        nodes += [
            node("MatMul", ["time", "model.time.weight"], ["shift"]),
            node("Add", ["sum", "shift"], ["shifted"]),
        ]
        last = "shifted"
    if tied:
        nodes.append(node("Transpose", ["model.embed.weight"], ["turned"], perm=[1, 0]))
        head = "turned"
    else:
        weights.append(weight("model.head.weight", WIDTH, VOCAB))
        head = "model.head.weight"
    nodes.append(node("MatMul", [last, head], ["logits"]))
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "rows", VOCAB])
    graph = helper.make_graph(nodes, "small", inputs, [output], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return ir.from_proto(model)


def weights_of(model):
    """Every initialiser's array by name."""
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


def set_weight(model, name, array):
    """Changes an initialiser, in place."""
    model.graph.initializers[name].const_value = ir.tensor(array, name=name)


def quantize_matrix(array, axis, *, half=False):
    """A matrix as int8, and the steps of its channels."""
    steps = channel_steps(array, axis, half=half)
    return round_matrix(array, steps, axis), steps


def data_of(model):
    """A graph's bytes."""
    return ir.to_proto(model).SerializeToString(deterministic=True)


def ids(block=6, seed=0):
    return np.random.default_rng(seed).integers(0, VOCAB, (1, block)).astype(np.int32)
