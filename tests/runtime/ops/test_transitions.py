"""Draws of transitions against the whole distribution that `probabilities` defines."""

from itertools import pairwise

import numpy as np
import pytest
from dlm_edge.runtime.errors import EngineError
from dlm_edge.runtime.noise.philox import DrawKind, uniforms
from dlm_edge.runtime.noise.transition import analytic_step, euler_step
from dlm_edge.runtime.ops.host import NumpyOps
from dlm_edge.runtime.ops.rows.compare import commit
from dlm_edge.runtime.ops.rows.contract import Sampling
from dlm_edge.runtime.ops.transition import TRANSITION
from dlm_edge.runtime.ops.transition.contract import TransitionSpec
from dlm_edge.runtime.ops.transition.host import TransitionScratch, transit
from hypothesis import given
from hypothesis import strategies as st
from transition_rows import probabilities

STEPS = {
    "analytic": lambda k: analytic_step("uniform", k, 1.0, 0.2),
    "small": lambda k: analytic_step("uniform", k, 0.5, 0.49),
    "denoise": lambda k: analytic_step("uniform", k, 0.3, 0.0),
    "absorb": lambda k: analytic_step("absorb", k, 1.0, 0.6),
    "unmask": lambda k: analytic_step("absorb", k, 0.2, 0.0),
    "euler": lambda k: euler_step("uniform", k, 1.0, 0.1),
}
PLAIN = Sampling(temperature=1.0)


def expected_token(p, x, uniform, sampling):
    """The inverse distribution function: ids but x in order, staying behind them."""
    leave = np.delete(p, x)
    ids = np.delete(np.arange(len(p)), x)
    mass = leave.sum()
    if uniform >= mass:
        return x, abs(uniform - mass)
    share = sharpened(leave, sampling)
    ends = np.cumsum(share)
    index = int(np.searchsorted(ends, uniform / mass, side="right"))
    edges = np.abs(ends - uniform / mass).min()
    return ids[min(index, len(ids) - 1)], min(edges, abs(uniform - mass))


def sharpened(p, sampling):
    """Temperature, top-k and top-p by definition, in float64."""
    if sampling.temperature == 0:
        return (np.arange(len(p)) == p.argmax()).astype(float)
    weights = (p / p.max()) ** (1 / sampling.temperature)
    order = np.argsort(-weights, kind="stable")
    kept = order[: sampling.top_k]
    if sampling.top_p is not None:
        running = np.cumsum(weights[kept])
        kept = kept[: int(np.searchsorted(running, sampling.top_p * running[-1])) + 1]
    out = np.zeros(len(p))
    out[kept] = weights[kept]
    return out / out.sum()


def compare(log_score, ids, step, sampling, rows, draws, banned=(), **fields):
    """Every row's draw against its definition; returns how many lay at a boundary."""
    block, vocab = log_score.shape
    scratch = TransitionScratch(block, vocab, banned)
    moved, tokens = transit(
        scratch, log_score, rows, ids[rows], step, draws[rows], sampling, **fields
    )
    found = ids[rows].copy()
    found[moved] = tokens
    states = np.ones(vocab, bool)
    states[list(banned)] = False
    p = probabilities(log_score[rows].astype(np.float64), ids[rows], step, states)
    ties = 0
    for index, row in enumerate(rows):
        wanted, distance = expected_token(p[index], ids[row], draws[row], sampling)
        if found[index] != wanted:
            assert distance < 1e-5
            ties += 1
    return ties


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize(
    "heat",
    [{}, {"temperature": 0.7}, {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.8},
     {"temperature": 1.5, "top_k": 20, "top_p": 0.6}],
    ids=str,
)  # fmt: skip
def test_draws_are_the_inverse_of_the_distribution(name, heat):
    ties = count = 0
    for seed, vocab in enumerate((5, 63, 64, 106, 300, 5000)):
        rng = np.random.default_rng(seed)
        block = 40 if vocab < 1000 else 9
        scale = (0.3, 2.0)[seed % 2]
        log_score = (rng.normal(size=(block, vocab)) * scale - 2).astype(np.float32)
        ids = rng.integers(0, vocab - 1, size=block).astype(np.int32)
        if name in ("absorb", "unmask"):
            ids[:] = vocab - 1
        log_score[np.arange(block), ids] = 0
        rows = np.flatnonzero(rng.random(block) < (1.0, 0.6)[seed % 2])
        sampling = Sampling(**{"temperature": 1.0, **heat})
        draws = rng.random(block)
        banned = (vocab - 1,) if seed % 2 else ()
        if name in ("absorb", "unmask"):
            banned = (vocab - 1,)
        num_states = vocab - len(banned)
        ties += compare(log_score, ids, STEPS[name](num_states), sampling, rows, draws, banned)
        count += len(rows)
    assert ties <= 0.005 * count


@given(st.integers(0, 10**6), st.sampled_from(list(STEPS)))
def test_a_rows_draw_does_not_depend_on_the_other_rows(seed, name):
    rng = np.random.default_rng(seed)
    block, vocab = 11, 1900  # groups of 17 rows: more than one fits in
    log_score = rng.normal(size=(block, vocab)).astype(np.float32)
    ids = rng.integers(0, vocab - 1, size=block).astype(np.int32)
    draws, step = rng.random(block), STEPS[name](vocab)
    scratch = TransitionScratch(block, vocab, ())

    def run(rows):
        moved, tokens = transit(scratch, log_score, rows, ids[rows], step, draws[rows], PLAIN)
        out = ids[rows].copy()
        out[moved] = tokens
        return out

    together = run(np.arange(block))
    some = np.flatnonzero(rng.random(block) < 0.5)
    if len(some):
        assert np.array_equal(run(some), together[some])
    assert [run(np.array([row]))[0] for row in range(block)] == together.tolist()


def test_banned_and_disallowed_ids_and_the_own_one_are_never_drawn():
    rng = np.random.default_rng(2)
    block, vocab, banned = 30, 70, (3, 69)
    log_score = np.zeros((block, vocab), np.float32)
    log_score[:, [3, 69]] = np.nan  # nobody looks at these
    allowed = np.zeros((block, 3), np.uint32)
    allowed[:, 0] = 0b111000  # ids 3, 4 and 5
    ids = np.full(block, 4, np.int32)
    scratch, seen = TransitionScratch(block, vocab, banned), set()
    step = analytic_step("uniform", 68, 20.0, 0.1)
    for _ in range(20):
        _, tokens = transit(
            scratch, log_score, np.arange(block), ids, step, rng.random(block), PLAIN,
            allowed=allowed,
        )  # fmt: skip
        seen |= set(tokens.tolist())
    assert seen == {5}


def test_a_bias_is_added_to_log_scores():
    rng = np.random.default_rng(4)
    log_score = rng.normal(size=(6, 50)).astype(np.float32)
    bias = rng.normal(size=50).astype(np.float32)
    ids, draws = np.zeros(6, np.int32), rng.random(6)
    step = STEPS["analytic"](50)
    scratch = TransitionScratch(6, 50, ())
    rows = np.arange(6)
    both = transit(scratch, log_score, rows, ids, step, draws, PLAIN, bias=bias)
    added = transit(scratch, log_score + bias, rows, ids, step, draws, PLAIN)
    for one, other in zip(both, added, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("value", [np.nan, np.inf, 100.0])
def test_ratios_that_are_not_finite_are_an_error(value):
    log_score = np.zeros((5, 80), np.float32)
    log_score[2, 7] = value
    scratch, rows = TransitionScratch(5, 80, ()), np.arange(5)
    ids, draws, step = np.ones(5, np.int32), np.full(5, 0.5), STEPS["analytic"](80)
    with pytest.raises(EngineError, match="not finite"):
        transit(scratch, log_score, rows, ids, step, draws, PLAIN)
    rows = np.delete(rows, 2)
    transit(scratch, log_score, rows, ids[rows], step, draws[rows], PLAIN)  # row 2 is not read


def test_a_masked_position_that_may_go_nowhere_is_an_error():
    scratch, ids = TransitionScratch(1, 9, (8,)), np.array([8], np.int32)
    log_score = np.full((1, 9), -np.inf, np.float32)
    with pytest.raises(EngineError, match="all 0"):
        transit(scratch, log_score, np.array([0]), ids, STEPS["unmask"](8), np.array([0.5]), PLAIN)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("mask", [-1, 49])
def test_a_canvas_goes_through_its_steps_and_then_stands_still(mask, dtype):
    block, vocab, steps = 12, 50, 5
    graph = "uniform" if mask < 0 else "absorb"
    sigmas = [3.0, 1.5, 0.7, 0.2, 0.05, 0.0]
    table = np.stack([analytic_step(graph, 49, *pair) for pair in pairwise(sigmas)])
    ops = NumpyOps().bind(TRANSITION)
    spec = TransitionSpec(
        block=block, vocab_size=vocab, sampling=Sampling(temperature=1.0),
        seed=3, sample_index=1, mask_token_id=mask, end_ids=(), banned=(49,),
        transition=table,
    )  # fmt: skip
    canvas = ops.canvas(spec)
    start = np.full(block, 7 if mask < 0 else mask, np.int32)
    start[:2] = (1, 2)
    free = np.arange(block) >= 2
    assert ops.begin_block(canvas, start, free, position=40, first=2) == 10
    rng = np.random.default_rng(0)
    for step in range(steps):
        assert canvas.sigma[0] == np.float32(sigmas[step])
        log_score = (rng.normal(size=(1, block, vocab)) - 1).astype(dtype)
        log_score[0, np.arange(block), canvas.ids[0]] = 0
        before, masked = canvas.ids[0].copy(), canvas.masked.copy()
        ops.sample(log_score, canvas)
        draws = uniforms(3, 1, 40 + np.arange(block), step, DrawKind.TOKEN)
        assert compare(log_score[0], before, table[step], PLAIN, np.flatnonzero(masked), draws,
                       banned=(49,)) == 0  # fmt: skip
        progress = commit(ops, canvas)
        assert progress.num_committed == (before != canvas.ids[0]).sum()
        left = (canvas.ids[0] == mask).sum() if mask >= 0 else 10 * (step + 1 < steps)
        assert progress.num_masked == left
        if mask < 0 and left:
            assert progress.num_final == 0
        if not left:
            break
    assert progress == (0, progress.num_committed, block, False, False)
    assert not (canvas.ids == 49).any()
    assert canvas.ids[0, :2].tolist() == [1, 2]
    end = canvas.ids.copy()
    ops.sample(log_score, canvas)
    assert commit(ops, canvas) == (0, 0, block, False, False)
    assert np.array_equal(canvas.ids, end)
