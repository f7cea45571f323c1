"""Transitions by the kernels against NumpyOps: single steps, captured steps, the whole loop."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from dlm_edge.runtime.decoding import DecodingSettings
from dlm_edge.runtime.errors import EngineError
from dlm_edge.runtime.families.base import Request
from dlm_edge.runtime.generate import generate
from dlm_edge.runtime.ops.cuda_ops import CudaOps
from dlm_edge.runtime.ops.numpy_ops import NumpyOps
from dlm_edge.runtime.philox import DrawKind, uniforms
from dlm_edge.runtime.schedule import make_schedule
from dlm_edge.runtime.transition import transition_table
from emulation.device import EmulatedDevice
from emulation.engines import DeviceEngines
from emulation.pairs import MAX_TIE_SHARE, on_device
from score_engines import ScoreEngines, score_manifest

HEATS = [
    {},
    {"temperature": 0.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.8},
    {"top_k": 9, "top_p": 0.5},
]
GRAPHS = ("uniform", "absorb")
SEED, INDEX, PLACE = 2**40 + 5, 3, 17


@dataclass
class Pair:
    """One canvas on each backend, in the same state."""

    cuda: CudaOps
    device: Any
    host: Any

    @classmethod
    def make(cls, cuda, graph, settings, *, block, vocab, fixed=(), **fields):
        steps = settings.steps or 4
        table = transition_table(make_schedule("loglinear"), graph, settings.rule, steps, vocab - 1)
        both = [
            ops.canvas(
                block=block, vocab_size=vocab, settings=settings, seed=SEED, sample_index=INDEX,
                mask_token_id=vocab - 1 if graph == "absorb" else -1, eos_token_id=0,
                banned=(vocab - 1,), transition=table, **fields,
            )
            for ops in (cuda, NumpyOps())
        ]  # fmt: skip
        ids = np.random.default_rng(block).integers(1, vocab - 1, size=block).astype(np.int32)
        free = ~np.isin(np.arange(block), fixed)
        if graph == "absorb":
            ids[free] = vocab - 1
        for ops, canvas in zip((cuda, NumpyOps()), both, strict=True):
            ops.begin_block(canvas, ids, free, position=PLACE, first=0)
        return cls(cuda, *both)

    def read(self, name):
        return self.cuda.to_host(getattr(self.device, name)), getattr(self.host, name)

    def step(self, log_score):
        """Samples and commits on both; returns (rows, rows that differ at a boundary)."""
        host = self.host
        rows, before = np.flatnonzero(host.masked), host.ids[0].copy()
        self.cuda.sample(on_device(self.cuda, log_score), self.device)
        NumpyOps().sample(log_score, host)
        goes, expected = self.read("chosen")
        tokens, wanted = self.read("candidate")
        found = np.where(goes.astype(bool), tokens, before)
        right = np.where(expected, wanted, before)
        differing = rows[found[rows] != right[rows]]
        for row in differing:
            assert self.near_a_boundary(log_score.reshape(len(before), -1), row, before)
        # From here on both are the same again, whatever a boundary did.
        for name in ("chosen", "candidate"):
            self.cuda._device.upload(getattr(self.device, name), getattr(host, name))
        progress = NumpyOps().commit(host)
        assert self.cuda.commit(self.device) == progress
        assert np.array_equal(self.cuda.ids(self.device), host.ids[0])
        assert np.array_equal(self.cuda.masked(self.device), host.masked)
        assert self.read("sigma")[0] == host.sigma
        return len(rows), len(differing)

    def near_a_boundary(self, log_score, row, before):
        """Whether a uniform 1e-5 to either side gives another token on the host itself."""
        host, scratch = self.host, self.host.scratch.rows
        from dlm_edge.runtime.ops.transitions import transit

        draw = uniforms(SEED, INDEX, PLACE + row, host.step, DrawKind.TOKEN).item()
        found = set()
        for moved in (-1e-5, 0.0, 1e-5):
            goes, token = transit(
                scratch, log_score, np.array([row]), before[[row]], host.transition[host.step],
                np.array([np.clip(draw + moved, 0, 1)]), host.settings,
            )  # fmt: skip
            found.add((bool(goes[0]), *token.tolist()))
        return len(found) > 1


def random_scores(seed, block, vocab, dtype=np.float32, scale=1.5):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(1, block, vocab)) * scale
    return (rows - np.log(vocab)).astype(dtype)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("heat", HEATS, ids=str)
def test_steps_are_those_of_numpy(cuda, graph, heat):
    drawn = tied = 0
    for case, vocab in enumerate((5, 63, 64, 65, 200, 1000)):
        rule = ("tweedie", "euler")[case % 2]
        settings = DecodingSettings(rule=rule, steps=3, **heat)
        block = (1, 17, 8)[case % 3]
        pair = Pair.make(cuda, graph, settings, block=block, vocab=vocab, fixed=(0, 5)[: block - 1])
        for step in range(3):
            dtype = (np.float32, np.float16)[case % 2]
            scores = random_scores(10 * case + step, block, vocab, dtype)
            if case == 4:
                scores = np.round(scores)  # equal weights
            rows, ties = pair.step(scores)
            drawn, tied = drawn + rows, tied + ties
        assert pair.host.num_masked == 0
        assert not (pair.host.ids == vocab - 1).any()
    assert drawn > 40
    assert tied <= max(1, MAX_TIE_SHARE * drawn)


def test_bias_and_allowed_bits_are_those_of_numpy(cuda):
    rng = np.random.default_rng(4)
    block, vocab = 9, 145
    allowed = rng.integers(0, 2**32, size=(block, 5), dtype=np.uint32)
    pair = Pair.make(
        cuda, "uniform", DecodingSettings(rule="tweedie", steps=3), block=block, vocab=vocab,
        allowed=allowed, bias=rng.normal(size=vocab).astype(np.float32),
    )  # fmt: skip
    for step in range(3):
        assert pair.step(random_scores(step, block, vocab)) == (block, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, 100.0])
@pytest.mark.parametrize("heat", [{}, {"top_k": 3}], ids=str)
def test_a_row_that_is_not_finite_fails_at_the_commit(cuda, value, heat):
    settings = DecodingSettings(rule="tweedie", steps=3, **heat)
    pair = Pair.make(cuda, "uniform", settings, block=5, vocab=202, fixed=(4,))
    scores = random_scores(1, 5, 202)
    scores[0, 4] = value  # fixed, so not read
    scores[0, :, 201] = value  # no state, so not read
    assert pair.step(scores) == (4, 0)
    scores[0, 2, 77] = value
    before = cuda.ids(pair.device)
    cuda.sample(on_device(cuda, scores), pair.device)
    with pytest.raises(EngineError):
        cuda.commit(pair.device)
    assert np.array_equal(cuda.ids(pair.device), before)
    with pytest.raises(EngineError):
        NumpyOps().sample(scores, pair.host)


def test_no_result_depends_on_the_order_of_threads():
    found = []
    for down in (False, True):
        ops = CudaOps(EmulatedDevice(downwards=down), run_ahead=False)
        for heat in HEATS:
            settings = DecodingSettings(rule="tweedie", steps=3, **heat)
            pair = Pair.make(ops, "uniform", settings, block=9, vocab=700)
            pair.step(random_scores(2, 9, 700))
            found.append(ops.ids(pair.device).tolist())
    half = len(HEATS)
    assert found[:half] == found[half:]


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_captured_step_feeds_its_noise_and_gives_what_its_calls_give(cuda, graph):
    device = cuda._device
    settings = DecodingSettings(rule="tweedie", steps=4)
    one, other = (Pair.make(cuda, graph, settings, block=9, vocab=120) for _ in range(2))
    # So unlikely to move that a masked canvas, too, is not done before its last step.
    rare = np.float32(8 if graph == "absorb" else 0)
    source = on_device(cuda, random_scores(1, 9, 120) - rare)
    target = device.empty((1, 9, 120), np.float32)
    ids, sigma = device.empty((1, 9), np.int32), device.empty((1,), np.float32)

    def run():
        cuda.assign(ids, one.device.ids)
        cuda.assign(sigma, one.device.sigma)
        cuda.assign(target, source)

    step, told = cuda.capture_step(one.device, target, run), []
    before = (device.num_allocations, device.num_launches) if hasattr(device, "num_launches") else 0
    for _ in range(4):
        assert cuda.replay_step(one.device, step).num_masked == one.device.num_masked
    if before:
        after = (device.num_allocations, device.num_launches)
        assert np.subtract(after, before).tolist() == [0, 8]  # two launches, nothing allocated
    for _ in range(4):
        told.append(cuda.to_host(other.device.sigma).item())
        cuda.sample(source, other.device)
        cuda.commit(other.device)
    assert np.allclose(told, other.host.transition[:, 0])
    assert cuda.to_host(sigma).item() == pytest.approx(told[-1])
    assert np.array_equal(cuda.ids(one.device), cuda.ids(other.device))


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
        found.append((generate(score_manifest(engines, graph), used, ops, asked), engines.runs))
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
        settings = DecodingSettings(rule=rule, steps=5, **heat)
        asked = Request(seed=2**33 + 1, sample_index=2, settings=settings, **fields)
        (host, told), (found, also) = results(device, graph, asked, run_ahead=run_ahead)
        assert (found.token_ids, found.finish_reason) == (host.token_ids, host.finish_reason)
        windows = 4
        assert host.nfe <= found.nfe <= host.nfe + (windows if graph == "absorb" else 0) * run_ahead
        if not run_ahead:
            assert also == told
