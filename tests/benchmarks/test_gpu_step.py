"""What of the GPU benchmark needs no GPU: its engine on the emulated device, rule and ratios."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from dlm_edge.benchmarks import gpu_drafts, gpu_model, gpu_place, gpu_step
from dlm_edge.benchmarks.gpu_engine import TorchDeviceEngines
from dlm_edge.runtime.families.base import Request
from dlm_edge.runtime.families.table import load_model
from dlm_edge.runtime.generate import generate
from dlm_edge.runtime.gpu.facts import GpuFacts
from dlm_edge.runtime.gpu.replay import ReplayingDevice
from dlm_edge.runtime.ops.cuda.ops import CudaOps
from dlm_edge.train.torch_engine import TorchEngineSet
from emulation.device import EmulatedDevice
from gpu.models import manifest_of, tiny_graphs
from rules import decoding

torch.set_num_threads(1)


def test_the_engine_that_is_measured_gives_the_tokens_of_the_loop_on_the_cpu():
    graphs = tiny_graphs()
    reference = TorchEngineSet(graphs)
    manifest = manifest_of(reference.specs)
    emulated = EmulatedDevice()
    device = ReplayingDevice(emulated)
    engines = TorchDeviceEngines(
        {graph.name: graph.module for graph in graphs},
        reference.specs,
        device,
        alias=lambda array: torch.from_numpy(emulated.view(array)),
        scope=lambda: torch.inference_mode(),
    )
    # The emulation records calls, a GPU what they enqueue: a run is one of them.
    device.submit = lambda key, call: ReplayingDevice.submit(  # type: ignore[method-assign]
        device, key, lambda: emulated.enqueue(call)
    )
    for rule in ("threshold", "low_confidence"):
        asked = Request(
            prompt_ids=(0, 5, 6), max_tokens=11, seed=3, sample_index=0,
            settings=decoding(rule=rule, temperature=1.0),
        )  # fmt: skip
        wanted = generate(load_model(manifest, reference), asked)
        found = generate(load_model(manifest, engines, CudaOps(device)), asked)
        assert found.token_ids == wanted.token_ids
    assert device.num_replayed > 0
    engines.close()


def test_the_forward_that_is_measured_has_the_tensors_of_its_spec():
    size = gpu_step.SIZES["tiny"]
    module = gpu_model.half_module(size, "cpu")
    spec = gpu_model.half_spec(size, module)
    given = [torch.zeros(t.shape, dtype=getattr(torch, t.dtype)) for t in spec.inputs]
    with torch.inference_mode():
        made = module(*given)
    for tensor, result in zip(spec.outputs, made, strict=True):
        assert tuple(result.shape) == tensor.shape
        assert result.dtype == getattr(torch, tensor.dtype)
        assert torch.isfinite(result).all()


def test_the_peers_rule_is_the_threshold_rule():
    torch.manual_seed(0)
    logits = torch.randn(16, 300).half() * 4
    ids, masked = torch.ones(16, dtype=torch.int64), torch.arange(16) != 3
    ids[3] = 9
    after, left, count = gpu_model.eager_rule(logits, ids, masked, 0.5)
    assert after[3] == 9
    assert 0 < int(count) < 16
    assert int(count) == int(left.sum())
    assert not (after[~left] == 1).any()
    assert (after[left] == 1).all()
    _, left, count = gpu_model.eager_rule(logits, ids, masked, 2.0)
    assert int(count) == 14  # never fewer than one


def test_the_peers_rule_over_drafts_keeps_what_agrees_and_draws_what_is_left():
    torch.manual_seed(0)
    rows = torch.randn(6, 300).half()
    masks = torch.randn(6, 6, 300).half()
    drafted = torch.zeros(6, 300)
    drafted[1:] = torch.softmax(rows.float().index_fill(1, torch.ones(1).long(), -torch.inf), 1)[:5]
    ids = torch.cat([torch.zeros(1).long(), torch.multinomial(drafted[1:], 1)[:, 0]])
    after, kept, q = gpu_model.eager_draft_rule(rows, masks, drafted, ids)
    assert int(kept) == 6
    assert q.sum(1) == pytest.approx(torch.ones(6), abs=1e-5)
    assert q[:, 1].max() == 0
    rows[2] = -9.0
    rows[2, 7] = 9.0  # draft 3 is another, so that it is 7 that is left
    ids[3] = 8
    drafted[3] = drafted[3] * 0 + torch.eye(300)[8]
    for _ in range(5):
        after, kept, q = gpu_model.eager_draft_rule(rows, masks, drafted, ids)
        assert (int(kept), int(after[0])) == (3, 7)
        assert torch.equal(q.argmax(1), masks[2].float().index_fill(
            1, torch.ones(1).long(), -torch.inf).argmax(1))  # fmt: skip


@pytest.fixture
def place(monkeypatch):
    """The emulation and the CPU in place of a GPU, each thing timed once."""
    emulated = EmulatedDevice()
    device = ReplayingDevice(emulated)
    device.submit = lambda key, call: ReplayingDevice.submit(  # type: ignore[method-assign]
        device, key, lambda: emulated.enqueue(call)
    )
    once = gpu_place.called_ms
    for module in (gpu_place, gpu_step):
        monkeypatch.setattr(module, "called_ms", lambda call, wait, number=1: once(call, wait, 1))
    monkeypatch.setattr(gpu_step, "COPY_BYTES", 2**15)
    return gpu_place.Place(
        device=device,
        kind="cpu",
        compile=lambda module, **options: module,
        wait=lambda: None,
        repeats=1,
        engine_options={
            "alias": lambda array: torch.from_numpy(emulated.view(array)),
            "scope": lambda: torch.inference_mode(),
        },
    )


def test_every_figure_is_taken_on_the_emulated_device(place, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_place.Place, "open", classmethod(lambda cls: place))
    card = GpuFacts(name="none", compute_capability="8.7", driver_version=12060, power_mode="")
    monkeypatch.setattr(gpu_step, "read_gpu", lambda: card)
    output = tmp_path / "step.json"
    result = CliRunner().invoke(
        gpu_step.main, ["--size", "tiny", "--rounds", "1", "-o", str(output)]
    )
    assert result.exit_code == 0, result.output
    report = json.loads(output.read_text("utf-8"))
    assert {"engine", "drafts: engine", "drafts: overhead share of the engine",
            "compiled draft rule, reduce-overhead over ours"} <= set(report["figures"])  # fmt: skip
    by_input = {}
    for one in report["bandwidth"]:
        by_input.setdefault(one["input"], []).append(one["kernel"])
        assert one["ratio"] > 0
    assert by_input["step"] == by_input["256 MiB"]
    assert len(by_input["step"]) == len(set(by_input["step"]))
    drafting = {"verify, greedy", "verify, drawn, kept", "verify, mixed, rejected"}
    wanted = drafting | {"sample, drawn", "append_rows", "propose, top-p"}
    assert wanted <= set(by_input["step"])


def test_drafts_that_are_timed_as_kept_or_rejected_are(place):
    ops = CudaOps(place.device)
    bench = gpu_drafts.DraftBench(gpu_step.SIZES["tiny"], place, ops)
    values = gpu_drafts.normal((1, 6, 258), 1)
    masks = place.device.empty(values.shape, np.float16)
    place.device.upload(masks, values)
    seen = 0
    for name, enqueue, drafts in bench.kernels(masks, values):
        enqueue()
        kept = ops.to_host(drafts.memory.arrays["kept"])[:-1]
        if name.startswith("verify"):
            assert kept.tolist() == [int("rejected" not in name)] * 5, name
            seen += 1
    assert seen == 6


def test_ratios_are_of_medians():
    names = ["begin", "engine", "update", "step captured", "step replayed alone",
             "step uncaptured", "drafts: begin", "drafts: engine", "drafts: update"]  # fmt: skip
    names += [peer.format(rule) for rule in ("rule", "draft rule") for peer in gpu_place.PEERS]
    times = {name: [2.0] for name in names}
    times |= {"begin": [0.5], "engine": [10.0, 1.0, 100.0], "step captured": [11.0]}
    times |= {"drafts: begin": [1.0], "drafts: engine": [20.0, 1.0, 300.0]}
    found = gpu_step.summary(times)
    assert found["overhead share of the engine"] == pytest.approx(0.05)
    assert found["eager rule over ours"] == pytest.approx(2 / 1.5)
    assert found["drafts: overhead share of the engine"] == pytest.approx(0.05)
    assert found["compiled draft rule over ours"] == pytest.approx(2.0)


def test_without_a_gpu_the_benchmark_is_one_line():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    result = CliRunner().invoke(gpu_step.main, ["--size", "tiny"])
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
