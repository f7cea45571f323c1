"""Transitions by the kernels against NumpyOps: single steps, captured steps, the whole loop."""

from typing import Any

import numpy as np
import pytest
from dlm_edge.runtime.errors import EngineError
from dlm_edge.runtime.families.base import Request
from dlm_edge.runtime.families.table import load_model
from dlm_edge.runtime.generate import generate
from dlm_edge.runtime.gpu.replay import ReplayingDevice
from dlm_edge.runtime.ops.cuda.ops import CudaOps
from dlm_edge.runtime.ops.host import NumpyOps
from dlm_edge.runtime.ops.rows.contract import Sampling
from dlm_edge.runtime.ops.transition.compare import (
    TRANSITION_SAMPLINGS,
    TransitionPair,
    random_scores,
)
from emulation.device import EmulatedDevice
from emulation.engines import DeviceEngines
from emulation.pairs import MAX_TIE_SHARE, commit, on_device
from rules import decoding
from score_engines import ScoreEngines, score_manifest

GRAPHS = ("uniform", "absorb")
PLAIN = Sampling(temperature=1.0)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("sampling", TRANSITION_SAMPLINGS, ids=str)
def test_steps_are_those_of_numpy(cuda, graph, sampling):
    drawn = tied = 0
    for case, vocab in enumerate((5, 63, 64, 65, 200, 1000)):
        rule = ("tweedie", "euler")[case % 2]
        block = (1, 17, 8)[case % 3]
        pair = TransitionPair.make(
            cuda, graph, sampling, rule=rule, block=block, vocab=vocab, fixed=(0, 5)[: block - 1]
        )
        for step in range(3):
            dtype = (np.float32, np.float16)[case % 2]
            scores = random_scores(10 * case + step, block, vocab, dtype)
            if case == 4:
                scores = np.round(scores)  # equal weights
            rows, ties, faults = pair.step(scores)
            assert not faults
            drawn, tied = drawn + rows, tied + ties
        assert pair.host.place.num_masked == 0
        assert not (pair.host.ids == vocab - 1).any()
    assert drawn > 40
    assert tied <= max(1, MAX_TIE_SHARE * drawn)


def test_bias_and_allowed_bits_are_those_of_numpy(cuda):
    rng = np.random.default_rng(4)
    block, vocab = 9, 145
    allowed = rng.integers(0, 2**32, size=(block, 5), dtype=np.uint32)
    pair = TransitionPair.make(
        cuda, "uniform", PLAIN, block=block, vocab=vocab,
        allowed=allowed, bias=rng.normal(size=vocab).astype(np.float32),
    )  # fmt: skip
    for step in range(3):
        assert pair.step(random_scores(step, block, vocab)) == (block, 0, [])


@pytest.mark.parametrize("value", [np.nan, np.inf, 100.0])
@pytest.mark.parametrize("heat", [{}, {"top_k": 3}], ids=str)
def test_a_row_that_is_not_finite_fails_at_the_commit(cuda, value, heat):
    sampling = Sampling(temperature=1.0, **heat)
    pair = TransitionPair.make(cuda, "uniform", sampling, block=5, vocab=202, fixed=(4,))
    scores = random_scores(1, 5, 202)
    scores[0, 4] = value  # fixed, so not read
    scores[0, :, 201] = value  # no state, so not read
    assert pair.step(scores) == (4, 0, [])
    scores[0, 2, 77] = value
    before = pair.forms[0].ids(pair.device)
    pair.forms[0].sample(on_device(cuda, scores), pair.device)
    with pytest.raises(EngineError):
        commit(pair.forms[0], pair.device, exact=True)
    assert np.array_equal(pair.forms[0].ids(pair.device), before)
    with pytest.raises(EngineError):
        pair.forms[1].sample(scores, pair.host)


def test_no_result_depends_on_the_order_of_threads():
    found = []
    for down in (False, True):
        ops = CudaOps(EmulatedDevice(downwards=down), run_ahead=False)
        for sampling in TRANSITION_SAMPLINGS:
            pair = TransitionPair.make(ops, "uniform", sampling, block=9, vocab=700)
            pair.step(random_scores(2, 9, 700))
            found.append(pair.forms[0].ids(pair.device).tolist())
    half = len(TRANSITION_SAMPLINGS)
    assert found[:half] == found[half:]


@pytest.mark.parametrize("graph", GRAPHS)
def test_steps_are_captured_once_and_replayed_with_the_noise_of_each(graph):
    inner = EmulatedDevice()
    device = ReplayingDevice(inner)
    cuda = CudaOps(device, run_ahead=False)
    one, other = (
        TransitionPair.make(cuda, graph, PLAIN, steps=6, block=9, vocab=120) for _ in range(2)
    )
    # So unlikely to move that a masked canvas, too, is not done before its last step.
    scores = random_scores(1, 9, 120) - np.float32(8 if graph == "absorb" else 0)
    source, target = on_device(cuda, scores), device.empty((1, 9, 120), np.float32)
    ids, sigma = device.empty((1, 9), np.int32), device.empty((1,), np.float32)
    costs = []
    for _ in range(6):
        before = dict(inner.counts)
        cuda.assign(ids, one.device.ids)
        cuda.assign(sigma, one.device.sigma)
        cuda.assign(target, source)  # in place of an engine's run
        one.forms[0].sample(target, one.device)
        commit(one.forms[0], one.device, exact=True)
        costs.append({name: inner.counts[name] - before[name] for name in before})
    assert device.num_captured == 1
    for cost in costs[2:]:
        assert (cost["replays"], cost["launches"], cost["copies"]) == (1, 2, 3)
        assert not any(cost[name] for name in ("allocations", "uploads", "downloads", "captures"))
    told = []
    for _ in range(6):
        told.append(cuda.to_host(other.device.sigma).item())
        other.step(scores)
    assert np.allclose(told, other.host.spec.transition[:, 0])
    assert cuda.to_host(sigma).item() == pytest.approx(told[-1])
    assert np.array_equal(one.forms[0].ids(one.device), other.forms[0].ids(other.device))


def hashed(vocab, graph):
    table = np.random.default_rng(7).normal(size=(997, vocab)).astype(np.float32)
    table[:, 0] -= 2

    def score(ids, sigma):
        whole = int(((ids.astype(np.int64) + 1) * (np.arange(len(ids)) * 7919 + 104729)).sum())
        rows = table[(whole + np.arange(len(ids)) * 31 + int(sigma * 1e3)) % 997].copy()
        rows -= np.logaddexp.reduce(rows, axis=1, keepdims=True)
        if graph == "absorb":
            rows -= np.log(np.expm1(sigma))
        rows[np.arange(len(ids)), ids] = 0
        return rows

    return score


def results(device, graph, asked, *, run_ahead):
    found = []
    for on_gpu in (False, True):
        engines = ScoreEngines(hashed(70, graph), [12, 24], 70)
        ops = CudaOps(device, run_ahead=run_ahead) if on_gpu else NumpyOps()
        used: Any = DeviceEngines(engines, device) if on_gpu else engines
        found.append(
            (generate(load_model(score_manifest(engines, graph), used, ops), asked), engines.runs)
        )
    return found


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("rule", ["tweedie", "euler"])
@pytest.mark.parametrize("heat", [{}, {"temperature": 0.8, "top_p": 0.9}], ids=str)
@pytest.mark.parametrize("run_ahead", [False, True])
def test_the_loop_gives_the_tokens_of_the_loop_in_numpy(device, graph, rule, heat, run_ahead):
    template = (0, 5, 69, 69, 9, 69, 11, 12, 69)
    for fields in (
        {"prompt_ids": (0, 5, 6), "max_tokens": 9},
        {"prompt_ids": (0, 5, 6), "max_tokens": 40},
        {"prompt_ids": (), "max_tokens": 0, "template_ids": template},
    ):
        settings = decoding(rule=rule, steps=5, **heat)
        asked = Request(seed=2**33 + 1, sample_index=2, settings=settings, **fields)
        (host, told), (found, also) = results(device, graph, asked, run_ahead=run_ahead)
        assert (found.token_ids, found.finish_reason) == (host.token_ids, host.finish_reason)
        windows = 4
        assert host.nfe <= found.nfe <= host.nfe + (windows if graph == "absorb" else 0) * run_ahead
        if not run_ahead:
            assert also == told
