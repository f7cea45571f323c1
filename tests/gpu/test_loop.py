"""The device loop on a real GPU, with PyTorch as its engine on the same buffers and stream."""

import pytest
import torch
from dlm_edge.benchmarks.gpu_engine import TorchDeviceEngines
from dlm_edge.runtime.families.base import Request
from dlm_edge.runtime.families.table import load_model, rules_of
from dlm_edge.runtime.generate import generate
from dlm_edge.runtime.ops.cuda.ops import CudaOps
from dlm_edge.train.torch_engine import TorchEngineSet
from gpu.models import manifest_of, tiny_graphs
from rules import decoding

pytestmark = pytest.mark.gpu


def request(rule, seed, **heat):
    settings = decoding(rule=rule, **heat)
    return Request(
        prompt_ids=(0, 5, 6), max_tokens=11, seed=seed, sample_index=0, settings=settings
    )


@pytest.fixture
def exact_products():
    """TF32 has 10 bits of mantissa, which is not the CPU's arithmetic."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("captures", [True, False], ids=["captured", "uncaptured"])
@pytest.mark.parametrize("rule", [rule.name for rule in rules_of("mdlm")])
def test_the_device_loop_gives_the_tokens_of_the_loop_on_the_cpu(
    gpu, exact_products, rule, captures
):
    reference = TorchEngineSet(tiny_graphs())
    manifest = manifest_of(reference.specs)
    modules = {graph.name: graph.module for graph in tiny_graphs("cuda")}
    engines = TorchDeviceEngines(modules, reference.specs, gpu)
    gpu.captures = captures
    ops = CudaOps(gpu)
    for seed in range(4):
        for heat in ({"temperature": 0.0}, {"temperature": 1.0}):
            if rule in ("first_hitting", "ancestral") and not heat["temperature"]:
                continue
            asked = request(rule, seed, **heat)
            wanted = generate(load_model(manifest, reference), asked)
            found = generate(load_model(manifest, engines, ops), asked)
            assert found.token_ids == wanted.token_ids
    assert (gpu.num_replayed > 0) == captures
    engines.close()
