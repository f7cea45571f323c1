import json
from dataclasses import replace

import pytest
from dlm_edge.jetson.forecast import machines
from dlm_edge.jetson.forecast.forecast import forecast_bundle, forecast_memory
from dlm_edge.jetson.forecast.memory import MemoryForecast, memory_parts, require_fit
from dlm_edge.jetson.graph.cost import graph_cost
from dlm_edge.jetson.graph.onnx_graph import read_graph
from dlm_edge.jetson.targets import target
from dlm_edge.runtime.bundle.bundle import open_bundle
from dlm_edge.runtime.bundle.manifest import graph_key
from dlm_edge.runtime.errors import ConfigError
from round_rates import RATES
from toy_bundle import write_toy
from untrained_draft import BLOCK, CONTEXT, SHAPE

SIZES = ((BLOCK, 8), (BLOCK, CONTEXT), (2 * BLOCK, 8), (2 * BLOCK, CONTEXT), (16, 8))
KEYS = {
    graph_key("denoise", {"batch": 1, "rows": rows, "context": context}) for rows, context in SIZES
}
AT = graph_key("denoise", {"batch": 1, "rows": BLOCK, "context": CONTEXT})


def test_a_plan_has_every_shape_and_is_plain_data(typed_draft):
    forecast = forecast_bundle(typed_draft, "orin-nano", "MAXN_SUPER", tokens_per_nfe=1.5)
    assert set(forecast.graphs) == KEYS
    assert (forecast.target, forecast.mode, forecast.warnings) == ("orin-nano", "maxn-super", ())
    text = json.loads(json.dumps(forecast.to_json(), allow_nan=False))
    assert {"weights", "kv", "activations", "context", "runtime", "total", "available"} == set(
        text["memory"]
    )
    assert len(text["graphs"]) == len(SIZES)


def test_rates_follow_from_the_step_and_the_tokens_per_run(typed_draft):
    forecast = forecast_bundle(typed_draft, "orin-nano", tokens_per_nfe=1.5)
    for part in forecast.graphs.values():
        spent = part.step_ms + part.outside_ms
        assert part.tokens_per_s == pytest.approx(1.5e3 / spent)
        assert part.tokens_per_s_uncaptured <= part.tokens_per_s
        assert part.watts is not None
        assert part.joules_per_token == pytest.approx(part.watts * spent / 1e3 / 1.5)
        assert part.operations == 2 * part.macs
        assert part.weight_bytes <= part.bytes


def test_a_run_makes_no_more_tokens_than_its_block_holds(typed_draft):
    forecast = forecast_bundle(typed_draft, "orin-nano", tokens_per_nfe=12.0)
    rows = {part.dims["rows"] for part in forecast.graphs.values()}
    assert min(rows) < 12 < max(rows)
    for part in forecast.graphs.values():
        spent = part.step_ms + part.outside_ms
        assert part.tokens_per_s == pytest.approx(min(12, part.dims["rows"]) * 1e3 / spent)


def test_memory_by_part_is_that_of_the_buffers(typed_draft):
    memory = forecast_memory(typed_draft, "orin-nano")
    dim, layers, vocab = SHAPE["dim"], SHAPE["num_layers"], SHAPE["vocab_size"]
    graph = read_graph(typed_draft.member("graphs/denoise.onnx").read_bytes())
    widest = graph_cost(graph, {"rows": 16, "context": 8})
    outputs = 16 * (4 * vocab + 2 * layers * 2 * dim)
    inputs = sum(4 * rows + 4 + 4 for rows, _ in SIZES)
    assert memory.kv * 2**20 == 2 * CONTEXT * layers * 2 * dim
    assert memory.activations * 2**20 == widest.activation_bytes + outputs + inputs
    assert memory.weights * 2**20 == widest.stored_bytes
    assert memory.context == machines.CUDA_CONTEXT_MIB
    assert memory.total == pytest.approx(sum(memory.parts.values()))
    assert memory.available == 7607 - 519
    assert memory.fits


def test_a_cpu_plan_is_the_sum_of_its_operators(draft):
    forecast = forecast_bundle(draft, "host", tokens_per_nfe=1.0, rates=RATES)
    part = forecast.graphs[AT]
    graph = read_graph(draft.member("graphs/denoise.onnx").read_bytes())
    cost = graph_cost(graph, {"rows": BLOCK, "context": CONTEXT})
    others = sum(node.items for node in cost.nodes if node.kernel.macs == 0)
    wanted = cost.macs / 1e9 + others * 1e-9 + len(cost.nodes) * 1e-6
    assert part.step_ms == pytest.approx(1e3 * wanted)
    sampling = 1e-5 + BLOCK / 2 * (1e-6 + SHAPE["vocab_size"] * 1e-9)
    assert part.outside_ms == pytest.approx(1e3 * sampling)
    assert (part.watts, part.step_ms_uncaptured) == (None, part.step_ms)
    assert (forecast.mode, forecast.memory.runtime, forecast.memory.context) == (None, 50.0, 0.0)


def test_rates_between_two_measured_ones_are_interpolated():
    uneven = replace(
        RATES,
        footprints_mib=(1.0, 100.0),
        product_macs_per_s=((1e9, 4e9), (1e8, 4e8)),
        rows=(1, 16),
        attention_macs_per_s=(1e9, 4e9),
    )
    speed = uneven

    class Kernel:
        macs, rows, dtype = 1000, 4, "float32"

    class Node:
        kernel, constant_input = Kernel, True

    # Half-way in the logarithm of rows: twice the first rate; half-way in that of the footprint.
    assert speed.product_seconds(Node, 1.0) == pytest.approx(1000 / 2e9)
    assert speed.product_seconds(Node, 10.0) == pytest.approx(1000 / (2e9 / 10**0.5))
    assert speed.product_seconds(Node, 1e6) == pytest.approx(1000 / 2e8)
    Kernel.dtype = "int8"
    assert speed.product_seconds(Node, 1.0) == pytest.approx(1000 / 2e9)
    Node.constant_input = False
    assert speed.product_seconds(Node, 1e6) == pytest.approx(1000 / 2e9)


@pytest.mark.parametrize("tokens", [0.0, -1.0, 17.0])
def test_impossible_tokens_per_run_are_refused(draft, tokens):
    with pytest.raises(ConfigError, match="tokens per NFE"):
        forecast_bundle(draft, "host", tokens_per_nfe=tokens, rates=RATES)


def test_unknown_targets_and_modes_are_refused(draft):
    with pytest.raises(ConfigError, match="'moon' is unknown"):
        forecast_bundle(draft, "moon", tokens_per_nfe=1.0)
    with pytest.raises(ConfigError, match="no power mode 'x'"):
        forecast_bundle(draft, "orin-nano", "x", tokens_per_nfe=1.0)


def test_a_bundle_for_another_target_is_planned_with_a_warning(draft, typed_draft):
    forecast = forecast_bundle(draft, "orin-nano", tokens_per_nfe=1.0)
    assert "made for host, not for orin-nano" in forecast.warnings[0]
    forecast = forecast_bundle(typed_draft, "host", tokens_per_nfe=1.0, rates=RATES)
    assert "made for orin-nano, not for host" in forecast.warnings[0]


def test_a_packed_bundle_is_planned_from_what_it_holds(tmp_path):
    bundle = open_bundle(write_toy(tmp_path))
    forecast = forecast_bundle(bundle, "cpu", tokens_per_nfe=1.0, rates=RATES)
    assert len(forecast.graphs) == len(bundle.manifest.graphs)
    assert forecast.memory.available is None
    assert any("another one" in line for line in forecast.assumptions)


def memory_of(**parts):
    base = {"weights": 1.0, "kv": 1.0, "activations": 1.0, "context": 1.0, "runtime": 1.0}
    return MemoryForecast(**{**base, **parts}, available=100.0)


@pytest.mark.parametrize(
    ("part", "setting"),
    [("weights", "--precision"), ("kv", "--context"), ("activations", "--block")],
)
def test_what_cannot_fit_is_refused_naming_the_part_and_the_setting(part, setting):
    require_fit(memory_of(**{part: 96.0}), target("orin-nano"))
    with pytest.raises(ConfigError, match=f"{part} alone take 97") as caught:
        require_fit(memory_of(**{part: 97.0}), target("orin-nano"))
    assert setting in str(caught.value)
    assert "needs 101 MiB on orin-nano, which has 100 free" in str(caught.value)


def test_two_graph_files_weigh_as_much_as_both(typed_draft):
    manifest = typed_draft.manifest
    one = manifest.graphs[0]
    other = replace(one, name="head", file="graphs/head.onnx")
    cost = graph_cost(read_graph(typed_draft.member(one.file).read_bytes()), one.dims)
    machine = machines.Board(target("orin-nano"), target("orin-nano").mode())
    costs = {spec.key: cost for spec in (one, other)}
    alone, both = (
        memory_parts(replace(manifest, graphs=graphs), costs, machine)
        for graphs in ((one,), (one, other))
    )
    assert both.weights == 2 * alone.weights > 0
    assert both.kv == alone.kv
    inputs = 4 * one.rows + 4 + 4  # each graph has its own
    assert (both.activations - alone.activations) * 2**20 == pytest.approx(inputs)


def test_a_mode_that_caps_the_power_is_a_warning(typed_draft):
    mode = target("orin-nano").mode("7w")
    assert mode is not None
    low = replace(mode, watts=3.0)
    (warning,) = forecast_bundle(typed_draft, "orin-nano", low, tokens_per_nfe=1.0).warnings
    assert "mode 7w caps the power" in warning
    assert not forecast_bundle(typed_draft, "orin-nano", "maxn-super", tokens_per_nfe=1.0).warnings


def test_single_buffers_that_nvmap_fails_on_are_named(typed_draft):
    specs = tuple(
        replace(
            spec,
            inputs=tuple(
                replace(item, shape=(2**21, *item.shape[1:])) if item.role == "kv" else item
                for item in spec.inputs
            ),
        )
        for spec in typed_draft.manifest.graphs
    )
    large = replace(typed_draft, manifest=replace(typed_draft.manifest, graphs=specs))
    (warning,) = forecast_bundle(large, "orin-nano", tokens_per_nfe=1.0).warnings
    assert "kv is one buffer of 512 MiB" in warning
    assert "NvMap" in warning
    assert "smaller --context" in warning
