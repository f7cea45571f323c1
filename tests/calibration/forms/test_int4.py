"""The int4 form: what it computes, what it stores, and that rows stay apart."""

import gguf
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from dlm_edge.calibration.forms.cpu import CpuForm, quantize_for_cpu
from dlm_edge.calibration.grids import GROUP, find_grid, round_to_grid
from dlm_edge.calibration.layers import find_layers
from dlm_edge.export.onnx_graph.lint import lint
from onnx import TensorProto, helper, numpy_helper
from small_graphs import data_of, node, weights_of

INPUTS, HIDDEN, OUTPUTS = 2 * GROUP, 3 * GROUP, 40


def graph(kind="Q4_1"):
    """x -> up -> sigmoid -> down, with the values of a 4-bit file."""
    rng = np.random.default_rng(0)

    def weight(name, inputs, outputs):
        array = (rng.standard_normal((outputs, inputs)) / np.sqrt(inputs)).astype(np.float32)
        if kind is not None:
            written = gguf.GGMLQuantizationType[kind]
            array = gguf.dequantize(gguf.quantize(array, written), written)
        return numpy_helper.from_array(np.ascontiguousarray(array.T), name)

    nodes = [
        node("MatMul", ["x", "model.up.weight"], ["up"]),
        node("Sigmoid", ["up"], ["gate"]),
        node("MatMul", ["gate", "model.down.weight"], ["down"]),
        node("Neg", ["down"], ["y"]),
        node("Softmax", ["y"], ["z"]),  # so that no product is a head
    ]
    made = helper.make_graph(
        nodes,
        "pair",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "rows", INPUTS])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", "rows", OUTPUTS])],
        [weight("model.up.weight", INPUTS, HIDDEN), weight("model.down.weight", HIDDEN, OUTPUTS)],
    )
    opset = [helper.make_opsetid("", 20)]
    return ir.from_proto(helper.make_model(made, opset_imports=opset, ir_version=10))


def in_int4(model):
    layers = find_layers(model, {})
    recipe = CpuForm().default_recipe(layers, "int4")
    assert {item.precision for item in recipe.layers.values()} == {"int4"}
    matrices = {layer.name: weights_of(model)[layer.weight].T for layer in layers}
    grids = {name: find_grid(matrix) or round_to_grid(matrix) for name, matrix in matrices.items()}
    return quantize_for_cpu(model, layers, recipe, grids), grids


def run(model, x):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        data_of(model), options, providers=["CPUExecutionProvider"]
    )
    return session.run(["z"], {"x": x})[0]


def rows(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal((*shape, INPUTS)).astype(np.float32)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", None])
def test_graph_computes_the_product_but_for_rounding_of_activations(kind):
    model = graph(kind)
    made, grids = in_int4(model)
    x = rows(2, 5)

    def product(values, grid):
        """Activations are int8 by groups; lows meet their exact sums."""
        groups = values.reshape(*values.shape[:-1], -1, GROUP)
        step = np.abs(groups).max(axis=-1, keepdims=True) / 127
        rounded = (np.rint(groups / step) * step).reshape(values.shape)
        offsets = grid.lows + 8 * grid.steps
        middle = grid.values() - np.repeat(offsets, GROUP, axis=1)
        return rounded @ middle.T + groups.sum(axis=-1) @ offsets.T

    gate = 1 / (1 + np.exp(-product(x, grids["up"])))
    down = -product(gate, grids["down"])
    wanted = np.exp(down) / np.exp(down).sum(axis=-1, keepdims=True)
    assert run(made, x) == pytest.approx(wanted, rel=2e-3)
    assert run(made, x) == pytest.approx(run(model, x), rel=0.2 if kind is None else 0.02)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_weights_of_a_4_bit_file_are_stored_in_its_own_bytes(kind):
    model = graph(kind)
    made, _ = in_int4(model)
    arrays = weights_of(made)
    packed, step = arrays["model.up.weight.int4"], arrays["model.up.weight.step.fp16"]
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(HIDDEN, -1, GROUP)
    steps = step.astype(np.float32).reshape(HIDDEN, -1, 1)
    lows = -8 * steps
    if kind == "Q4_1":
        lows = arrays["model.up.weight.low.fp16"].astype(np.float32).reshape(HIDDEN, -1, 1)
    assert ("model.up.weight.low.fp16" in arrays) == (kind == "Q4_1")
    values = (codes * steps + lows).reshape(HIDDEN, -1)
    assert np.array_equal(values, weights_of(model)["model.up.weight"].T)
    assert not any(array.ndim == 2 and array.dtype == np.float32 for array in arrays.values())


def test_a_row_is_the_same_whatever_the_others_hold():
    made, _ = in_int4(graph())
    x = rows(1, 7)
    others = x.copy()
    others[0, [0, 1, 2, 4, 5, 6]] = 100 * rows(1, 6, seed=2)
    assert np.array_equal(run(made, x)[0, 3], run(made, others)[0, 3])
    # A row alone takes another kernel, which adds in another order.
    assert run(made, x[:, 3:4])[0, 0] == pytest.approx(run(made, x)[0, 3], rel=1e-5)


def test_no_text_depends_on_the_others_of_its_batch():
    made, _ = in_int4(graph())
    x = rows(3, 5)
    alone = np.concatenate([run(made, x[i : i + 1]) for i in range(3)])
    assert np.array_equal(run(made, x), alone)


def test_graphs_for_cpus_may_hold_it_and_graphs_for_boards_may_not():
    made, _ = in_int4(graph())
    assert lint(made, board=False) == []
    assert any("com.microsoft" in line for line in lint(made, board=True))
