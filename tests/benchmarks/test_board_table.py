import json

import pytest
from click.testing import CliRunner
from dlm_edge.benchmarks import board_table
from dlm_edge.benchmarks.block_graph import FILE, TransformerShape, block_graph, block_manifest
from dlm_edge.benchmarks.board_table import PRECISIONS, SHAPES, main
from dlm_edge.jetson.forecast.forecast import forecast_bundle, forecast_graphs
from dlm_edge.jetson.graph.cost import graph_cost
from dlm_edge.jetson.graph.onnx_graph import read_graph
from untrained_draft import BLOCK, CONTEXT, HIDDEN, make_draft
from untrained_draft import SHAPE as SIZES

AT = {"rows": BLOCK, "context": CONTEXT}
SAME = TransformerShape(
    name="as the draft",
    dim=SIZES["dim"],
    num_layers=SIZES["num_layers"],
    num_heads=SIZES["num_heads"],
    num_kv_heads=SIZES["num_heads"],
    head_dim=SIZES["dim"] // SIZES["num_heads"],
    hidden_dim=HIDDEN,
    vocab_size=SIZES["vocab_size"],
    positions=SIZES["context"],
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("typed")
    return make_draft(folder, target="orin-nano", precision="fp16")


def test_a_graph_of_sizes_costs_what_the_exported_one_costs(exported):
    real = graph_cost(read_graph(exported.member(FILE).read_bytes()), AT)
    ours = graph_cost(block_graph(SAME), AT)
    assert ours.macs == real.macs
    assert ours.weight_bytes == pytest.approx(real.weight_bytes, rel=0.01)
    assert ours.stored_bytes == pytest.approx(real.stored_bytes, rel=0.01)
    assert ours.output_bytes == real.output_bytes
    assert len(ours.kernels) == pytest.approx(len(real.kernels), rel=0.1)
    assert ours.activation_bytes == pytest.approx(real.activation_bytes, rel=0.1)


def test_a_plan_of_sizes_is_that_of_the_exported_graph(exported):
    real = forecast_bundle(exported, "orin-nano", tokens_per_nfe=1.0)
    sizes = [(spec.rows, spec.context) for spec in exported.manifest.graphs]
    manifest = block_manifest(SAME, sizes, precision="fp16", target="orin-nano")
    ours = forecast_graphs(manifest, {FILE: block_graph(SAME)}, "orin-nano", tokens_per_nfe=1.0)
    assert set(ours.graphs) == set(real.graphs)
    for key, part in real.graphs.items():
        assert ours.graphs[key].step_ms == pytest.approx(part.step_ms, rel=0.1)
    assert ours.memory.total == pytest.approx(real.memory.total, rel=0.01)


@pytest.mark.parametrize(
    ("name", "parameters"), [("Qwen2.5-0.5B", 494.0e6), ("Qwen2.5-1.5B", 1543.7e6)]
)
def test_qwen_shapes_have_the_parameters_of_their_model_cards(name, parameters):
    (shape,) = (item for item in SHAPES if item.name == name)
    graph = block_graph(shape)
    weights = sum(
        item.shape[0] * (item.shape[1] if len(item.shape) > 1 else 1)
        for item in graph.initialisers.values()
        if item.dtype == "float16" and item.name != "one_float16"
    )
    assert weights == pytest.approx(parameters, rel=0.001)


def test_integers_halve_and_quarter_the_linear_layers_and_leave_the_head():
    (shape,) = (item for item in SHAPES if item.name == "Qwen2.5-0.5B")
    sizes = {"rows": 32, "context": 64}
    costs = {name: graph_cost(block_graph(shape, name), sizes) for name in PRECISIONS}
    head = 2 * shape.vocab_size * shape.dim
    whole = costs["fp16"].stored_bytes - head
    assert costs["int8"].stored_bytes - head == pytest.approx(whole / 2, rel=0.06)  # outliers
    assert costs["int4"].stored_bytes - head == pytest.approx(whole / 4, rel=0.05)  # steps
    assert costs["int4"].macs == costs["fp16"].macs < costs["int8"].macs
    kinds = {name: {k.dtype for k in cost.kernels if k.macs} for name, cost in costs.items()}
    assert kinds == {"fp16": {"float16"}, "int8": {"int8", "float16"}, "int4": {"float16"}}


def test_the_table_is_marked_as_predicted_and_written_as_json(tmp_path, monkeypatch):
    monkeypatch.setattr(board_table, "SHAPES", (SAME,))
    out = tmp_path / "board.json"
    done = CliRunner().invoke(main, ["--power-mode", "7w", "--out", str(out)])
    assert done.exit_code == 0
    assert done.stdout.startswith("predicted")
    assert "published by others" in done.stdout
    saved = json.loads(out.read_text("utf-8"))
    row = saved["predicted"][0]
    assert (row["mode"], row["precision"]) == ("7w", "fp16")
    assert all(item["source"] for item in saved["published"])
