"""`dlm-run --engine tensorrt` from the command line to the tokens, on a board that is a stand-in.

Ours is everything but TensorRT's runtime and the driver: plan cache, profiles, binding, the order
of the stream, captured steps, kernels, KV cache, loop, streaming.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from dlm_edge.runtime.cli.run import main
from dlm_edge.runtime.engines import tensorrt_open
from dlm_edge.runtime.errors import DeviceError
from dlm_edge.runtime.families.table import rules_of
from dlm_edge.runtime.pipeline import Pipeline
from emulation.board import make_board
from manifests import find_shape
from score_bundle import write_score
from toy_bundle import write_toy


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return str(write_toy(tmp_path))


@pytest.fixture(params=["at once", "later"])
def board(monkeypatch, toy, request):
    """Calls end before they return, or a thread works them off behind the host's back."""
    return make_board(monkeypatch, asynchronous=request.param == "later")


def run(*arguments):
    return CliRunner().invoke(main, arguments)


def texts(bundle, engine, **settings):
    with Pipeline.load(bundle, engine=engine) as pipeline:
        found = []
        for seed in range(3):
            generation = pipeline.generate("abc", max_tokens=7, seed=seed, **settings)
            spans = [(s.position, s.token_ids, s.text) for s in generation if s.committed]
            result = generation.result()
            found.append((result.token_ids, result.finish_reason, result.text))
            assert "".join(text for _, _, text in spans) == result.text
        return found


@pytest.mark.parametrize("rule", [rule.name for rule in rules_of("mdlm")])
def test_every_rule_gives_the_tokens_of_the_cpu(toy, board, rule):
    wanted = texts(toy, "onnxruntime", rule=rule, temperature=1.0)
    assert texts(toy, "tensorrt", rule=rule, temperature=1.0) == wanted
    assert board.trt.num_built == 1


@pytest.mark.parametrize("graph", ["uniform", "absorb"])
@pytest.mark.parametrize("rule", [rule.name for rule in rules_of("sedd")])
def test_score_models_give_the_tokens_of_the_cpu(tmp_path, monkeypatch, graph, rule):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    make_board(monkeypatch)
    bundle = str(write_score(tmp_path / "s.dlm", graph))
    wanted = texts(bundle, "onnxruntime", rule=rule, steps=5)
    assert texts(bundle, "tensorrt", rule=rule, steps=5) == wanted


def test_the_command_builds_a_plan_once_and_says_what_it_runs_on(toy, board):
    cpu = json.loads(run(toy, "abc", "--json", "--engine", "onnxruntime").stdout)
    for turn in range(2):
        found = run(toy, "abc", "--json", "--engine", "tensorrt", "-v")
        assert found.exit_code == 0, found.stderr
        record = json.loads(found.stdout)
        assert record["engine"] == "tensorrt"
        assert (record["text"], record["token_ids"]) == (cpu["text"], cpu["token_ids"])
        assert "engine tensorrt: asked for" in found.stderr
        assert board.trt.num_built == 1, turn


def test_auto_takes_tensorrt_where_it_is_and_says_why(toy, board):
    record = json.loads(run(toy, "abc", "--json").stdout)
    assert record["engine"] == "tensorrt"
    assert record["engine_reason"] == "auto: TensorRT 10.3.0.30 and Orin are here"


def test_auto_without_a_gpu_takes_the_cpu_and_says_why(toy, monkeypatch):
    record = json.loads(run(toy, "abc", "--json").stdout)
    assert record["engine"] == "onnxruntime-cpu"
    assert record["engine_reason"].startswith("auto: ONNX Runtime, since ")


def test_auto_says_aloud_when_a_tensorrt_that_is_there_fails(toy, board):
    board.trt.num_refusals = 9
    found = run(toy, "abc", "--json")
    assert found.exit_code == 0
    assert json.loads(found.stdout)["engine"] == "onnxruntime-cpu"
    assert "TensorRT is here but fails: TensorRT cannot load the plan that it just" in found.stderr
    assert "Traceback" not in found.stderr


def test_gaps_are_filled_and_the_canvas_is_shown_as_on_the_cpu(toy, board):
    form = ("--infill", "ab___", "--gap-tokens", "2", "--temperature", "1")
    wanted = run(toy, *form, "--engine", "onnxruntime")
    found = run(toy, *form, "--engine", "tensorrt")
    assert (found.exit_code, found.stdout) == (wanted.exit_code, wanted.stdout)
    watched = run(toy, "abc", "--watch", "--engine", "tensorrt", "--seed", "3")
    assert watched.exit_code == 0, watched.stderr
    plain = run(toy, "abc", "--engine", "onnxruntime", "--seed", "3")
    assert plain.stdout.strip() in watched.stdout


def test_golden_vectors_are_replayed_on_the_device(toy, board, tmp_path):
    from dlm_edge.export.checks.golden import golden_vectors
    from dlm_edge.runtime.bundle.bundle import open_bundle, write_bundle
    from dlm_edge.runtime.engines import open_engines
    from dlm_edge.train.families.graphs import mask_noise
    from toy_bundle import VOCAB, toy_manifest, toy_members

    bundle = open_bundle(toy)
    ids = np.random.default_rng(0).integers(2, VOCAB, 12).astype(np.int32)
    engines = open_engines(bundle, "onnxruntime", 1)
    golden = golden_vectors(bundle.manifest, engines, ids, {"denoise": mask_noise(1)}, seed=0)
    path = tmp_path / "golden.dlm"
    write_bundle(path, toy_manifest(), {**toy_members(tmp_path / "p"), "golden.json": golden})
    found = run(str(path), "--check", "--engine", "tensorrt", "--json")
    assert found.exit_code == 0, found.stderr
    figures = json.loads(found.stdout)
    assert figures["engine"] == "tensorrt"
    assert figures["max_abs_error"] < 1e-5
    assert figures["top1_agreement"] == 1.0
    wrong = golden.replace(b'"commit": 0', b'"commit": null')
    write_bundle(path, toy_manifest(), {**toy_members(tmp_path / "p"), "golden.json": wrong})
    assert run(str(path), "--check", "--engine", "tensorrt").exit_code == 1


def steps(board, pipeline, **settings):
    """What each update of a decode cost, by the kind of call, and how many masks were left."""
    generation = pipeline.generate("", max_tokens=7, **settings)
    loop = generation._loop
    costs = []
    before = dict(board.device.counts)
    inner = loop._rule.update

    def update(engine):
        nonlocal before
        spans = inner(engine)
        now = dict(board.device.counts)
        costs.append({name: now[name] - before.get(name, 0) for name in now})
        before = now
        return spans

    loop._rule.update = update
    generation.result()
    del loop._rule.update  # else rule and update hold each other, and the canvas with them
    return costs


def test_a_step_within_a_block_allocates_copies_and_waits_for_nothing(monkeypatch, toy):
    """Over a text decoded a second time, so that every step is one that was captured."""
    board = make_board(monkeypatch)
    with Pipeline.load(toy, engine="tensorrt") as pipeline:
        settings = {"rule": "low_confidence", "temperature": 1.0}
        for _ in range(3):
            costs = steps(board, pipeline, **settings)
        zero = ("allocations", "uploads", "downloads", "bytes_downloaded", "waits", "captures")
        # The first step of a block uploads where it starts; the steps after it are one replay.
        within = [cost for cost in costs if not cost["uploads"]]
        assert len(within) >= 4
        for cost in within:
            assert not any(cost[name] for name in zero), cost
            assert cost["replays"] == 1
            assert cost["engine_runs"] == 1
            # Sample and commit; a block's last also stores its cache and begins the next block.
            assert cost["launches"] in (2, 4), cost
        for cost in costs:
            assert not any(cost[name] for name in zero if name != "uploads"), cost
        assert sum(cost["uploads"] for cost in costs) <= 2  # once per block


def test_a_late_report_costs_no_run_but_behind_an_end_of_text(toy, board):
    with Pipeline.load(toy, engine="onnxruntime") as pipeline:
        cpu = [pipeline.generate("", max_tokens=7, seed=seed).result() for seed in range(6)]
    with Pipeline.load(toy, engine="tensorrt") as pipeline:
        gpu = [pipeline.generate("", max_tokens=7, seed=seed).result() for seed in range(6)]
    for one, other in zip(cpu, gpu, strict=True):
        assert other.token_ids == one.token_ids
        assert 0 <= other.nfe - one.nfe <= (1 if one.finish_reason == "end" else 0)


def test_steps_that_cannot_be_captured_go_out_call_by_call_and_that_is_said(toy, monkeypatch):
    board = make_board(monkeypatch)

    def refuse(run):
        raise DeviceError("CUDA graphs need the package cuda-bindings")

    monkeypatch.setattr(board.device, "capture", refuse)
    found = run(toy, "abc", "--engine", "tensorrt", "--temperature", "1")
    assert found.exit_code == 0
    assert found.stderr.count("steps are not captured") == 1
    plain = run(toy, "abc", "--engine", "onnxruntime", "--temperature", "1")
    assert found.stdout == plain.stdout
    assert board.device.counts["replays"] == 0


def test_int8_graphs_of_a_cpu_are_refused_by_name_and_auto_says_so_and_goes_on(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    make_board(monkeypatch)
    ask = ("Once upon a time", "--max-tokens", "24", "--temperature", "0.8", "--json")
    monkeypatch.delattr(tensorrt_open, "make_device")  # no kernel is compiled for it either
    refused = run(*ask, "--engine", "tensorrt")  # the model that ships
    assert refused.exit_code == 1
    assert "--target orin-nano" in refused.stderr
    assert refused.stderr.count("\n") == 1
    found = run(*ask)
    assert found.stderr.count("takes ONNX Runtime, though TensorRT is here") == 1
    assert "fails" not in found.stderr
    wanted = json.loads(run(*ask, "--engine", "onnxruntime").stdout)
    assert json.loads(found.stdout)["token_ids"] == wanted["token_ids"]


def with_half_cache(folder):
    """The toy with float16 where its cache enters and leaves."""
    import onnx_ir as ir
    from dlm_edge.export.onnx_graph.weights import split_weights
    from dlm_edge.runtime.bundle.bundle import write_bundle
    from onnx import TensorProto, helper
    from toy_bundle import toy_manifest, toy_members, toy_model

    model = toy_model()
    graph = model.graph
    for node in graph.node:
        if node.op_type == "Where":
            node.input[1] = "kv32"
        if "kv_new" in node.output:
            node.output[0] = "kv_new32"
    graph.node.insert(0, helper.make_node("Cast", ["kv"], ["kv32"], to=TensorProto.FLOAT))
    graph.node.append(helper.make_node("Cast", ["kv_new32"], ["kv_new"], to=TensorProto.FLOAT16))
    for item in (*graph.input, *graph.output):
        if item.name in ("kv", "kv_new"):
            item.type.tensor_type.elem_type = TensorProto.FLOAT16
    manifest = toy_manifest()

    def halved(side):
        return tuple(replace(t, dtype="float16") if "kv" in t.role else t for t in side)

    specs = tuple(
        replace(spec, inputs=halved(spec.inputs), outputs=halved(spec.outputs))
        for spec in manifest.graphs
    )
    members = toy_members(folder / "whole")
    (folder / "half").mkdir()
    members |= split_weights({"denoise": ir.from_proto(model)}, folder / "half")
    write_bundle(folder / "half.dlm", replace(manifest, graphs=specs), members)
    return str(folder / "half.dlm")


def test_a_float16_cache_is_bound_and_appended_as_such(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    make_board(monkeypatch)
    bundle = with_half_cache(tmp_path)
    for rule in ("threshold", "low_confidence"):
        wanted = texts(bundle, "onnxruntime", rule=rule, temperature=1.0)
        assert texts(bundle, "tensorrt", rule=rule, temperature=1.0) == wanted
    with Pipeline.load(bundle, engine="tensorrt") as pipeline:
        kv = pipeline.engines.engine(find_shape(pipeline.engines.specs, "denoise", 4, 8)).inputs[
            "kv"
        ]
        assert kv.dtype == np.float16


@pytest.mark.trt
@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX")
def test_plans_of_a_real_builder_go_the_same_way(monkeypatch, toy):
    from trt.conftest import backend

    trt = backend()

    def configure(config):
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM86, 0)

    board = make_board(monkeypatch, builder=trt, configure=configure)
    assert texts(toy, "tensorrt") == texts(toy, "onnxruntime")
    assert texts(toy, "tensorrt") == texts(toy, "onnxruntime")
    assert board.trt.num_built == 1
