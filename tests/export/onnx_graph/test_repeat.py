import numpy as np
import onnxruntime
import pytest
import torch
from dlm_edge.calibration.graphs import array_of, value_types
from dlm_edge.export.onnx_graph import trace as tracing
from dlm_edge.export.onnx_graph.repeat import SAMPLE, find_stack, repeat, shortened
from dlm_edge.export.onnx_graph.trace import trace
from dlm_edge.train.families import FAMILIES
from dlm_edge.train.families.base import ExportGraph, GraphTensor
from small_graphs import data_of
from torch import nn

DIM, LAYERS = 8, SAMPLE + 2
DIMS = {"batch": 1, "rows": 4}


class Layer(nn.Module):
    def __init__(self, *, folded):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(DIM))
        self.linear = nn.Linear(DIM, DIM)
        self.folded = folded

    def forward(self, x, past):
        rate = torch.exp(self.scale) if self.folded else self.scale
        new = self.linear(x * rate)
        return x + torch.tanh(new + past), new


class Model(nn.Module):
    """Layers that read a place each of a cache, and whose new values are collected."""

    def __init__(self, num_layers=LAYERS, *, folded=False):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer(folded=folded) for _ in range(num_layers))

    def forward(self, x, kv):
        stored = []
        for number, layer in enumerate(self.layers):
            x, new = layer(x, kv[:, :, number])
            stored.append(new)
        return x.mean(-1), torch.stack(stored, dim=2)


def graph_of(model):
    kv = ("batch", "rows", len(model.layers), DIM)
    return ExportGraph(
        name="toy",
        module=model.eval(),
        inputs=(
            GraphTensor(name="x", dtype="float32", shape=("batch", "rows", DIM), role="canvas"),
            GraphTensor(name="kv", dtype="float32", shape=kv, role="kv"),
        ),
        outputs=(
            GraphTensor(name="y", dtype="float32", shape=("batch", "rows"), role="logits"),
            GraphTensor(name="kv_new", dtype="float32", shape=kv, role="kv_new"),
        ),
        shapes=lambda blocks, contexts: (),
    )


def form_of(model):
    """The graph without names of values."""
    inputs = [(value.name, str(value.shape), value.dtype) for value in model.graph.inputs]
    known = {value: value.name for value in model.graph.inputs}
    for value in model.graph.initializers.values():
        array = array_of(value)
        known[value] = (array.dtype.str, array.shape, array.tobytes())
    nodes = []
    for place, node in enumerate(model.graph):
        attributes = sorted((name, str(item.value)) for name, item in node.attributes.items())
        nodes.append((node.op_identifier(), attributes, [known.get(v) for v in node.inputs]))
        known |= {value: (place, number) for number, value in enumerate(node.outputs)}
    ends = [
        (value.name, str(value.shape), value.dtype, known[value]) for value in model.graph.outputs
    ]
    return inputs, nodes, ends


def traced_whole(graph, dims):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracing, "find_stack", lambda module: None)
        return trace(graph, dims)


def traced_by_repetition(graph, dims):
    """Fails where the graph would be traced whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracing, "repeat", lambda *given: repeat(*given) or pytest.fail("unlike"))
        return trace(graph, dims)


def test_a_repeated_graph_equals_the_one_traced_whole():
    model = Model()
    with torch.no_grad():
        for layer in model.layers[:SAMPLE]:  # equal in what is traced, and in no other
            layer.scale.fill_(1.0)
    graph = graph_of(model)
    repeated = traced_by_repetition(graph, DIMS)
    assert form_of(repeated) == form_of(traced_whole(graph, DIMS))
    assert f"layers.{LAYERS - 1}.linear.weight" in repeated.graph.initializers
    value_types(repeated)  # raises where shapes contradict each other


def test_weights_are_as_they_were_after_tracing():
    model = Model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    said = []
    trace(graph_of(model), DIMS, said.append)
    assert not said
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_layers_whose_weights_are_folded_are_traced_whole_and_that_is_said():
    model, said = Model(folded=True), []
    found = trace(graph_of(model), DIMS, said.append)
    assert said == [f"toy: its {LAYERS} layers are not traced alike: tracing all of them"]
    session = onnxruntime.InferenceSession(data_of(found), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feeds = {
        "x": rng.standard_normal((1, 4, DIM)).astype(np.float32),
        "kv": rng.standard_normal((1, 4, LAYERS, DIM)).astype(np.float32),
    }
    wanted = model(*(torch.as_tensor(array) for array in feeds.values()))
    for one, other in zip(session.run(None, feeds), wanted, strict=True):
        np.testing.assert_allclose(one, other.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_a_stack_of_few_or_of_unlike_layers_is_not_repeated():
    assert find_stack(Model(SAMPLE)) is None
    model = Model()
    model.layers[2].linear = nn.Linear(DIM, DIM, bias=False)
    assert find_stack(model) is None


def test_a_fault_while_tracing_leaves_the_module_whole():
    model = Model()
    stack = find_stack(model)
    with pytest.raises(RuntimeError, match=str(SAMPLE)), shortened(stack):
        raise RuntimeError(len(model.layers))
    assert len(model.layers) == LAYERS


def test_the_repeated_step_of_a_causal_model_equals_the_one_traced_whole():
    options = {
        "dim": 16, "num_layers": SAMPLE + 1, "num_heads": 2, "num_kv_heads": 1, "vocab_size": 32,
        "context": 16,
        "eos_token_id": 0, "pad_token_id": None,
    }  # fmt: skip
    config = FAMILIES["ar"].make_config(options)
    model = FAMILIES["ar"].make_model(config["model"])
    with torch.no_grad():
        for item in model.parameters():
            item.normal_()
    (whole,) = FAMILIES["ar"].graphs(model, config)
    graph = whole.parts[0]  # with inputs and outputs of each layer
    dims = {"batch": 1, "rows": 4, "context": 16}
    assert form_of(traced_by_repetition(graph, dims)) == form_of(traced_whole(graph, dims))
