import numpy as np
import pytest
from dlm_edge.jetson.graph.cost import graph_cost
from dlm_edge.jetson.graph.onnx_graph import read_graph
from dlm_edge.jetson.graph.origins import VIEWS
from onnx import TensorProto, helper, numpy_helper
from untrained_draft import BLOCK, CONTEXT, HIDDEN, SHAPE

D, L, V, H = SHAPE["dim"], SHAPE["num_layers"], SHAPE["vocab_size"], HIDDEN


def read(bundle):
    return read_graph(bundle.member("graphs/denoise.onnx").read_bytes())


SIZES = {"rows": BLOCK, "context": CONTEXT}


def closed_form_macs(block, context):
    """Per layer: queries, keys and values, output, gate and up, down; scores and mixing."""
    linear = block * (D * 3 * D + D * D + D * 2 * H + H * D)
    attention = 2 * block * (context + block) * D
    return L * (linear + attention) + block * D * V


@pytest.mark.parametrize(("block", "context"), [(BLOCK, 8), (BLOCK, CONTEXT), (16, 8)])
@pytest.mark.parametrize("name", ["draft", "typed_draft"])
def test_products_of_a_block_step_are_those_of_the_closed_form(name, block, context, request):
    cost = graph_cost(read(request.getfixturevalue(name)), {"rows": block, "context": context})
    assert cost.macs == closed_form_macs(block, context)
    assert cost.operations == 2 * cost.macs
    assert sum(node.kernel.macs for node in cost.nodes) == cost.macs


@pytest.mark.parametrize(("name", "size"), [("draft", 4), ("typed_draft", 2)])
def test_weights_of_a_block_step_are_those_of_the_closed_form(name, size, request):
    bundle = request.getfixturevalue(name)
    cost = graph_cost(read(bundle), SIZES)
    matrices = L * (D * 3 * D + D * D + D * 2 * H + H * D) + D * V
    norms = (2 * L + 1) * D
    table = V * D
    stored = size * (matrices + norms + table)
    # Beside them only the rotary frequencies and scalars.
    assert stored <= cost.stored_bytes <= stored + 4 * D + 200
    assert cost.weight_bytes - (cost.stored_bytes - size * table) == size * BLOCK * D
    parameters = bundle.manifest.model["num_parameters"]
    assert parameters == matrices + norms + table


def test_a_kernel_reads_the_cache_and_writes_the_outputs_once(typed_draft):
    cost = graph_cost(read(typed_draft), SIZES)
    kv = CONTEXT * L * 2 * D * 2
    assert cost.input_bytes == kv + 4 * BLOCK + 4 + 4
    assert cost.output_bytes == BLOCK * (4 * V + 2 * L * 2 * D)
    outer = sum(kernel.outer_bytes for kernel in cost.kernels)
    assert cost.output_bytes + kv <= outer <= cost.output_bytes + cost.input_bytes + 64


def test_larger_blocks_and_contexts_cost_more(draft):
    costs = [
        graph_cost(read(draft), {"rows": rows, "context": context})
        for rows, context in ((4, 8), (4, 16), (16, 16))
    ]
    for field in ("macs", "activation_bytes", "node_activation_bytes", "input_bytes"):
        values = [getattr(cost, field) for cost in costs]
        assert values == sorted(values)
        assert values[0] < values[-1]


def test_fewer_kernels_than_nodes_and_no_view_among_them(draft):
    cost = graph_cost(read(draft), SIZES)
    assert sum(kernel.num_nodes for kernel in cost.kernels) == len(cost.nodes)
    assert len(cost.kernels) < len(cost.nodes) / 2
    assert not VIEWS.intersection(node.op for node in cost.nodes)


def model_of(nodes, inputs, outputs, weights):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return read_graph(helper.make_model(graph).SerializeToString())


def test_a_chain_of_pointwise_operations_is_one_kernel():
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["a"]),
        helper.make_node("Mul", ["x", "a"], ["b"]),
        helper.make_node("Reshape", ["b", "flat"], ["c"]),
        helper.make_node("Neg", ["c"], ["y"]),
    ]
    weights = {"flat": np.array([-1], np.int64)}
    cost = graph_cost(model_of(nodes, {"x": (4, 8)}, {"y": (32,)}, weights), {})
    (kernel,) = cost.kernels
    assert (kernel.op, kernel.num_nodes) == ("pointwise", 3)
    assert (kernel.outer_bytes, kernel.passed, kernel.weight_bytes) == (2 * 128, (), 0)
    # The longest-lived value is x * sigmoid(x); unfused, it takes its factor's place.
    assert (cost.activation_bytes, cost.node_activation_bytes) == (0, 128)


def test_a_reduction_stands_between_two_kernels():
    nodes = [
        helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node("Softmax", ["a"], ["b"], axis=-1),
        helper.make_node("Neg", ["b"], ["y"]),
    ]
    cost = graph_cost(model_of(nodes, {"x": (4, 8)}, {"y": (4, 8)}, {}), {})
    assert [kernel.op for kernel in cost.kernels] == ["Neg", "Softmax", "Neg"]
    assert [kernel.passed for kernel in cost.kernels] == [(128,), (128, 128), (128,)]
    assert cost.activation_bytes == 128


def test_weights_made_of_other_weights_are_counted_as_stored():
    nodes = [
        helper.make_node("Transpose", ["table"], ["head"], perm=[1, 0]),
        helper.make_node("Cast", ["head"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "wide"], ["y"]),
    ]
    weights = {"table": np.zeros((6, 8), np.float16)}
    cost = graph_cost(model_of(nodes, {"x": (4, 8)}, {"y": (4, 6)}, weights), {})
    (kernel,) = cost.kernels
    assert (kernel.weight_bytes, cost.stored_bytes, cost.widened_bytes) == (96, 96, 192)
    assert (kernel.rows, kernel.inner, kernel.columns) == (4, 8, 6)


def test_a_product_of_dequantised_factors_multiplies_int8():
    scale, zero = np.array(0.5, np.float32), np.array(0, np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["wide"]),
        helper.make_node("MatMul", ["d", "wide"], ["y"]),
    ]
    weights = {"scale": scale, "zero": zero, "w": np.zeros((8, 6), np.int8)}
    cost = graph_cost(model_of(nodes, {"x": (4, 8)}, {"y": (4, 6)}, weights), {})
    assert [kernel.dtype for kernel in cost.kernels if kernel.macs] == ["int8"]
    assert cost.stored_bytes == 48 + 4 + 1


def test_batches_and_transposed_factors_keep_their_macs():
    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["s"]),
        helper.make_node("Einsum", ["s", "v"], ["y"], equation="bij,bjd->bid"),
    ]
    inputs = {"q": (3, 4, 8), "k": (3, 8, 5), "v": (3, 5, 8)}
    cost = graph_cost(model_of(nodes, inputs, {"y": (3, 4, 8)}, {}), {})
    first, second = cost.kernels
    assert (first.batch, first.rows, first.inner, first.columns) == (3, 4, 8, 5)
    assert (second.batch, second.rows, second.inner, second.columns) == (3, 4, 5, 8)
    assert first.macs == second.macs == 3 * 4 * 8 * 5
