"""The whole decoding loop with kernels for ops must give the tokens of the loop in NumPy."""

import pytest
from dlm_edge.runtime.families.base import Request
from dlm_edge.runtime.families.table import load_model, rules_of
from dlm_edge.runtime.generate import generate
from dlm_edge.runtime.ops.cuda.ops import CudaOps
from dlm_edge.runtime.ops.host import NumpyOps
from emulation.device import EmulatedDevice
from emulation.engines import DeviceEngines
from rules import decoding
from table_engines import TableEngines, hashed, make_manifest

V = 70
MASK = V - 1
BLOCK_RULES = [rule.name for rule in rules_of("mdlm")]
SHAPES = [(8, 16), (8, 64), (64, 8)]


def never_ending(prefix, block):
    logits = hashed(V)(prefix, block).copy()
    logits[:, 0] = -40
    return logits


def results(device, asked, *, family="mdlm", denoiser=never_ending, run_ahead=True, timed=False,
            **fields):  # fmt: skip
    """The result on NumPy, and on the device."""
    found = []
    for on_device in (False, True):
        engines = TableEngines(denoiser, SHAPES, V, timed=timed)
        manifest = make_manifest(engines, family=family, **fields)
        ops = CudaOps(device, run_ahead=run_ahead) if on_device else NumpyOps()
        used = DeviceEngines(engines, device) if on_device else engines
        found.append(generate(load_model(manifest, used, ops), asked))
    return found


def request(**fields):
    base = {"prompt_ids": (0, 5, 6, 7, 8), "max_tokens": 30, "seed": 2**33 + 1, "sample_index": 2}
    return Request(**{**base, **fields})


@pytest.mark.parametrize("rule", BLOCK_RULES)
@pytest.mark.parametrize(
    "heat", [{}, {"temperature": 1.0}, {"temperature": 0.8, "top_k": 9, "top_p": 0.9}], ids=str
)
def test_every_rule_gives_the_tokens_of_the_loop_in_numpy(device, rule, heat):
    asked = request(settings=decoding(rule=rule, **heat))
    for run_ahead in (False, True):
        host, found = results(device, asked, run_ahead=run_ahead)
        assert found.token_ids == host.token_ids
        assert found.nfe == host.nfe


@pytest.mark.parametrize("rule", BLOCK_RULES)
def test_texts_that_end_and_penalised_texts_are_equal_too(device, rule):
    settings = decoding(rule=rule, temperature=1.0, repetition_penalty=1.3)
    for seed in range(3):
        asked = request(settings=settings, seed=seed, max_tokens=60)
        host, found = results(device, asked, denoiser=hashed(V))
        assert (found.token_ids, found.finish_reason) == (host.token_ids, host.finish_reason)


def test_gaps_are_filled_alike(device):
    template = (0, 5, MASK, MASK, 9, MASK, 11, 12, MASK, MASK, MASK, 3)
    for rule in ("threshold", "random"):
        settings = decoding(rule=rule, temperature=1.0)
        asked = request(prompt_ids=(), max_tokens=0, template_ids=template, settings=settings)
        host, found = results(device, asked)
        assert found.token_ids == host.token_ids
        assert MASK not in found.token_ids


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_causal_family_gives_the_same_text(device, temperature):
    settings = decoding(rule="next_token", temperature=temperature)
    for denoiser in (hashed(V, causal=True), never_ending):
        asked = request(settings=settings, max_tokens=20)
        host, found = results(device, asked, family="ar", denoiser=denoiser)
        assert (found.token_ids, found.nfe) == (host.token_ids, host.nfe)
        assert found.finish_reason == host.finish_reason


@pytest.mark.parametrize("rule", ["ancestral", "threshold"])
def test_graphs_that_see_time_are_told_the_same(device, rule):
    settings = decoding(rule=rule, temperature=1.0)
    for run_ahead in (False, True):
        host, found = results(device, request(settings=settings), run_ahead=run_ahead, timed=True)
        assert (found.token_ids, found.nfe) == (host.token_ids, host.nfe)


def test_what_a_graph_that_sees_time_is_told_is_not_read_back_from_the_device():
    device, settings = EmulatedDevice(), decoding(rule="low_confidence")
    counts = []
    for timed in (False, True):
        before = device.counts["downloads"]
        _, found = results(device, request(settings=settings), timed=timed)
        counts.append(device.counts["downloads"] - before)
    # The stand-in for an engine reads its inputs, this one too.
    assert counts[1] - counts[0] == found.nfe


@pytest.mark.parametrize("rule", ["threshold", "low_confidence", "first_hitting"])
def test_no_run_is_lost_where_the_window_slides(device, rule):
    settings = decoding(rule=rule, temperature=1.0)
    asked = request(settings=settings, max_tokens=150)
    host, found = results(device, asked)
    assert host.approximate
    assert (found.token_ids, found.nfe) == (host.token_ids, host.nfe)


def test_a_bundle_on_onnx_runtime_gives_the_same_text_with_its_buffers_on_the_device(
    device, tmp_path
):
    pytest.importorskip("onnxruntime")
    toy = pytest.importorskip("toy_bundle")
    from dlm_edge.runtime.bundle.bundle import open_bundle
    from dlm_edge.runtime.engines import open_engines

    path = toy.write_toy(tmp_path)
    settings = decoding(rule="factor", temperature=1.0)
    asked = Request(
        prompt_ids=(0, 5, 6, 7, 8), max_tokens=7, seed=4, sample_index=0, settings=settings
    )
    bundle = open_bundle(path)
    engines = open_engines(bundle, "onnxruntime", 1)
    host = generate(load_model(bundle.manifest, engines), asked)
    found = generate(load_model(bundle.manifest, DeviceEngines(engines, device)), asked)
    engines.close()
    assert found.token_ids == host.token_ids
    assert len(found.new_token_ids) > 0


@pytest.mark.parametrize("rule", BLOCK_RULES)
@pytest.mark.parametrize("how", [{"sub_block": 3}, {"merge": 1}, {"temperature": 1.0}], ids=str)
def test_shifted_rows_and_parts_of_a_block_give_the_tokens_of_the_loop_in_numpy(device, rule, how):
    asked = request(settings=decoding(rule=rule, **how))
    for run_ahead in (False, True):
        host, found = results(device, asked, run_ahead=run_ahead, logit_shift=1)
        assert found.token_ids == host.token_ids
