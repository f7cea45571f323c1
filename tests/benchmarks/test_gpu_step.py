"""What of the GPU benchmark needs no GPU: its engine on the emulated device, rule and ratios."""

import pytest
import torch
from click.testing import CliRunner
from dlm_edge.benchmarks import gpu_model, gpu_step
from dlm_edge.benchmarks.gpu_engine import TorchDeviceEngines
from dlm_edge.runtime.decoding import DecodingSettings
from dlm_edge.runtime.families.base import Request
from dlm_edge.runtime.generate import generate
from dlm_edge.runtime.ops.cuda_ops import CudaOps
from dlm_edge.runtime.ops.numpy_ops import NumpyOps
from dlm_edge.runtime.replay import ReplayingDevice
from dlm_edge.train.torch_engine import TorchEngineSet
from emulation.device import EmulatedDevice
from gpu.models import manifest_of, tiny_graphs

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
            settings=DecodingSettings(rule=rule, temperature=1.0),
        )  # fmt: skip
        wanted = generate(manifest, reference, NumpyOps(), asked)
        found = generate(manifest, engines, CudaOps(device), asked)
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


def test_ratios_are_of_medians():
    times = {name: [2.0] for name in (
        "begin", "engine", "update", "step captured", "step replayed alone", "step uncaptured",
        "eager rule", "compiled rule", "compiled rule, reduce-overhead")}  # fmt: skip
    times |= {"begin": [0.5], "engine": [10.0, 1.0, 100.0], "step captured": [11.0]}
    found = gpu_step.summary(times)
    assert found["overhead share of the engine"] == pytest.approx(0.05)
    assert found["eager rule over ours"] == pytest.approx(2 / 1.5)


def test_without_a_gpu_the_benchmark_is_one_line():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    result = CliRunner().invoke(gpu_step.main, ["--size", "tiny"])
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
