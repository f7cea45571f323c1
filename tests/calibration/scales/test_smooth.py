"""Folding changes what rounding sees and nothing else."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from dlm_edge.calibration.canvases.canvases import Inputs, RecordedRun
from dlm_edge.calibration.layers import find_layers
from dlm_edge.calibration.scales.activations import collect, layer_inputs
from dlm_edge.calibration.scales.smooth import (
    ALPHAS,
    find_folds,
    search_alphas,
    smooth,
    smoothing,
)
from dlm_edge.runtime.errors import CalibrationError
from manifests import bare_spec
from onnx import TensorProto, helper, numpy_helper
from small_graphs import ROLES, data_of, ids, node, set_weight, small_graph, weights_of
from tiny_checkpoint import BLOCK, CONTEXT, VOCAB

LAYER = "trunk.layers.0"


def run(model, inputs):
    session = onnxruntime.InferenceSession(data_of(model), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def tiny_canvases(model, number=4):
    """Random canvases of the traced model, at several starts."""
    rng = np.random.default_rng(0)
    kv = next(value for value in model.graph.inputs if value.name == "kv")
    tail = list(kv.shape)[1:]
    made = []
    for index in range(number):
        inputs = {
            "ids": rng.integers(0, VOCAB, (1, BLOCK)).astype(np.int32),
            "start": np.array([index * BLOCK % CONTEXT], np.int32),
            "kv": rng.standard_normal((CONTEXT, *tail)).astype(np.float32),
            "split": np.zeros(1, np.int32),
        }
        made.append(
            RecordedRun(
                spec=bare_spec(model.graph.name, BLOCK, CONTEXT),
                inputs=Inputs(inputs),
                mask_ratio=0.5,
                progress=0.5,
                committing=np.zeros(BLOCK, bool),
                weight=1.0,
                source="random",
            )
        )
    return made


@pytest.fixture
def known(traced):
    model, roles = traced
    layers = find_layers(model, roles)
    canvases = tiny_canvases(model)
    return model, layers, canvases, collect(model, canvases, layer_inputs(layers))


def test_norms_and_the_up_half_of_a_gated_mlp_can_take_the_scales(known):
    model, layers, _, _ = known
    folds = {layer.name: fold for fold in find_folds(model, layers) for layer in fold.layers}
    assert set(folds) == {
        f"trunk.layers.{index}.{name}"
        for index in (0, 1)
        for name in ("attention.qkv", "mlp.gate_up", "mlp.down")
    }
    for name in ("attention.qkv", "mlp.gate_up"):
        fold = folds[f"{LAYER}.{name}"]
        ((output, vector),) = fold.vectors
        assert output == fold.value
        assert vector.endswith("_norm.weight")
    down = folds[f"{LAYER}.mlp.down"]
    assert down.producer == f"model.{LAYER}.mlp.gate_up.weight"
    assert down.first_column == weights_of(model)[down.producer].shape[1] // 2


@pytest.mark.parametrize("alpha", [min(ALPHAS), max(ALPHAS)])
def test_folding_leaves_the_function_as_it_is_to_rounding(known, alpha):
    model, layers, canvases, seen = known
    alphas = {layer.name: alpha for fold in find_folds(model, layers) for layer in fold.layers}
    made = smooth(model, layers, seen, alphas)
    for canvas in canvases:
        for before, after in zip(
            run(model, dict(canvas.inputs)), run(made, dict(canvas.inputs)), strict=True
        ):
            assert np.abs(after - before).max() <= 2e-6 * max(1.0, np.abs(before).max())


def test_folding_changes_the_weights_and_the_activations_by_the_vector(known):
    model, layers, canvases, seen = known
    layer = next(item for item in layers if item.name == f"{LAYER}.attention.qkv")
    made = smooth(model, layers, seen, {layer.name: 0.5})
    before, after = weights_of(model), weights_of(made)
    (value,) = layer.inputs
    scales = smoothing(seen[value].channel_max, [before[layer.weight]], 0.5)
    assert scales.max() / scales.min() > 1.5  # else this would test nothing
    assert after[layer.weight] == pytest.approx(before[layer.weight] * scales[:, None], rel=1e-6)
    again = collect(made, canvases, {value: layer.name})[value]
    assert again.channel_max == pytest.approx(seen[value].channel_max / scales, rel=1e-4)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {layer.weight}
    # The norms of an untrained model are equal and stored once: this one's got a copy.
    ((output, vector),) = next(f.vectors for f in find_folds(model, layers) if f.value == value)
    assert after[f"{output}.{vector}"] == pytest.approx(before[vector] / scales, rel=1e-6)


def test_the_graph_given_is_not_changed_and_names_stay(known):
    model, layers, _, seen = known
    data = data_of(model)
    made = smooth(model, layers, seen, {f"{LAYER}.mlp.down": 0.5})
    assert data_of(model) == data
    before, after = (
        [value.name for node in graph.graph for value in node.outputs] for graph in (model, made)
    )
    assert before == after


def test_vector_follows_the_papers_formula_up_to_a_factor():
    rng = np.random.default_rng(0)
    x, weight = rng.uniform(0.1, 9, 6), rng.standard_normal((6, 3))
    scales = smoothing(x, [weight], 0.7)
    wanted = x**0.7 / np.abs(weight).max(axis=1) ** 0.3
    assert scales / scales[0] == pytest.approx(wanted / wanted[0])
    assert np.log(scales).mean() == pytest.approx(0.0, abs=1e-12)


def test_at_alpha_one_all_channels_become_equally_large():
    x = np.array([0.5, 8.0, 3.0])
    scales = smoothing(x, [np.ones((3, 2))], 1.0)
    assert np.ptp(x / scales) == pytest.approx(0.0, abs=1e-12)


def test_dead_channels_are_left_alone():
    scales = smoothing(np.array([0.0, 4.0, 1.0]), [np.array([[1.0], [1.0], [0.0]])], 0.5)
    assert scales[[0, 2]].tolist() == [1.0, 1.0]


def test_search_folds_where_channels_differ_and_not_where_they_do_not():
    model = small_graph(tied=False)
    layers = find_layers(model, ROLES)
    for spread, folded in ((1.0, False), (60.0, True)):
        graph = model.clone()
        gains = np.ones(8, np.float32)
        gains[3] = spread
        set_weight(graph, "model.norm.weight", gains)
        table = np.random.default_rng(0).choice([-1.0, 1.0], (12, 8)).astype(np.float32)
        set_weight(graph, "model.embed.weight", table)
        canvases = [
            RecordedRun(
                spec=bare_spec("small", 6, 8), inputs=Inputs({"ids": ids(seed=seed)}),
                mask_ratio=0.5, progress=0.0, committing=np.zeros(6, bool), weight=1.0,
                source="random",
            )
            for seed in range(6)
        ]  # fmt: skip
        seen = collect(graph, canvases, layer_inputs(layers))
        found = search_alphas(graph, layers, seen)
        assert (found["mlp.up"] is not None) == folded
        assert found["head"] is None  # nothing before it takes scales


def test_a_norm_with_a_bias_divides_both():
    rng = np.random.default_rng(0)
    weights = {
        "embed": rng.standard_normal((12, 4)),
        "gain": rng.uniform(0.5, 2, 4),
        "bias": rng.standard_normal(4),
        "up": rng.standard_normal((4, 3)),
    }
    graph = helper.make_graph(
        [
            node("Gather", ["embed", "ids"], ["x"]),
            node("Mul", ["x", "gain"], ["scaled"]),
            node("Add", ["scaled", "bias"], ["normed"]),
            node("MatMul", ["normed", "up"], ["y"]),
        ],
        "small",
        [helper.make_tensor_value_info("ids", TensorProto.INT32, [1, "rows"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "rows", 3])],
        [numpy_helper.from_array(a.astype(np.float32), name) for name, a in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model = ir.from_proto(made)
    layers = find_layers(model, ROLES)
    canvas = RecordedRun(
        spec=bare_spec("small", 6, 8), inputs=Inputs({"ids": ids()}), mask_ratio=0.0,
        progress=0.0, committing=np.zeros(6, bool), weight=1.0, source="random",
    )  # fmt: skip
    seen = collect(model, [canvas], layer_inputs(layers))
    (fold,) = find_folds(model, layers)
    assert set(fold.vectors) == {("scaled", "gain"), ("normed", "bias")}
    made = smooth(model, layers, seen, {"up": 0.6})
    assert run(made, {"ids": ids(seed=3)})[0] == pytest.approx(
        run(model, {"ids": ids(seed=3)})[0], abs=1e-5
    )


def test_a_value_that_something_else_reads_is_left_alone():
    model = ir.to_proto(small_graph())
    model.graph.node.append(node("Neg", ["normed"], ["other"]))
    model.graph.output.append(
        helper.make_tensor_value_info("other", TensorProto.FLOAT, [1, "rows", 8])
    )
    model = ir.from_proto(model)
    assert find_folds(model, find_layers(model, ROLES)) == ()


def test_an_alpha_that_nothing_can_take_is_refused(known):
    model, layers, _, seen = known
    with pytest.raises(CalibrationError, match=r"attention\.out has an alpha"):
        smooth(model, layers, seen, {f"{LAYER}.attention.out": 0.5})


def test_layers_that_share_an_input_must_agree():
    model = ir.to_proto(small_graph())
    rng = np.random.default_rng(0)
    extra = rng.standard_normal((8, 4)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(extra, "model.mlp.gate.weight"))
    model.graph.node.append(node("MatMul", ["normed", "model.mlp.gate.weight"], ["second"]))
    model.graph.output.append(
        helper.make_tensor_value_info("second", TensorProto.FLOAT, [1, "rows", 4])
    )
    model = ir.from_proto(model)
    layers = find_layers(model, ROLES)
    with pytest.raises(CalibrationError, match="must have the same alpha"):
        smooth(model, layers, {}, {"mlp.up": 0.5, "mlp.gate": 0.7})
