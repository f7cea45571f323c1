import numpy as np
import pytest
from dlm_edge.runtime.families.table import rules_of
from dlm_edge.runtime.noise.philox import DrawKind
from dlm_edge.runtime.ops.host import NumpyOps
from dlm_edge.runtime.ops.rows.compare import commit
from dlm_edge.runtime.ops.unmask import UNMASK
from dlm_edge.runtime.ops.unmask.contract import UnmaskSpec
from hypothesis import given
from hypothesis import strategies as st
from rules import decoding

OPS = NumpyOps().bind(UNMASK)
V, BLOCK = 90, 12
MASK, PAD, EOS = 89, 88, 0
BLOCK_RULES = [rule.name for rule in rules_of("mdlm")]


def make_canvas(settings, *, block=BLOCK, seed=3, steps=6, **fields):
    spec = UnmaskSpec(
        block=block, vocab_size=V, sampling=settings.sampling, selection=settings.selection,
        seed=seed, sample_index=0, mask_token_id=MASK, end_ids=(EOS,), banned=(PAD, MASK),
        unmask_chance=1 / np.arange(steps, 0, -1), **fields,
    )  # fmt: skip
    return OPS.canvas(spec)


def random_logits(seed, block=BLOCK):
    return np.random.default_rng(seed).normal(size=(1, block, V)).astype(np.float32) * 3


def begin(canvas, fixed=()):
    ids = np.full(canvas.ids.shape[1], MASK, np.int32)
    for index, token in fixed:
        ids[index] = token
    OPS.begin_block(canvas, ids, ids == MASK, position=24, first=0)


def no_eos(logits):
    logits[..., EOS] = -50
    return logits


@given(
    st.sampled_from(BLOCK_RULES),
    st.sampled_from([0.0, 0.7, 1.0]),
    st.integers(0, 10**6),
    st.sets(st.integers(0, BLOCK - 1), max_size=BLOCK - 1),
)
def test_every_rule_progresses_ends_and_touches_only_masked_positions(rule, heat, seed, fixed):
    canvas = make_canvas(decoding(rule=rule, temperature=heat), seed=seed)
    given_ids = [(index, 10 + index) for index in fixed]
    begin(canvas, given_ids)
    ops = OPS
    left, step = BLOCK - len(fixed), 0
    while left:
        before = canvas.ids.copy()
        ops.sample(no_eos(random_logits(seed + step)), canvas)
        progress = commit(ops, canvas)
        changed = np.flatnonzero(before[0] != canvas.ids[0])
        assert (before[0, changed] == MASK).all()
        assert len(changed) == progress.num_committed
        if rule != "ancestral":
            assert progress.num_committed >= 1
        assert progress.num_masked == left - progress.num_committed
        left, step = progress.num_masked, step + 1
        assert step <= BLOCK
    assert all(canvas.ids[0, index] == token for index, token in given_ids)
    assert not np.isin(canvas.ids, (MASK, PAD)).any()
    assert np.isfinite(canvas.log_prob).all()


def test_a_step_over_a_finished_block_changes_nothing():
    canvas = make_canvas(decoding(rule="threshold", threshold=0.01))
    begin(canvas)
    ops = OPS
    while canvas.place.num_masked:
        ops.sample(no_eos(random_logits(1)), canvas)
        commit(ops, canvas)
    before = canvas.ids.copy()
    ops.sample(random_logits(2), canvas)
    progress = commit(ops, canvas)
    assert progress.num_committed == 0
    assert np.array_equal(before, canvas.ids)


def test_greedy_takes_the_lowest_id_among_equals():
    canvas = make_canvas(decoding(rule="threshold"))
    begin(canvas)
    logits = np.zeros((1, BLOCK, V), np.float32)
    logits[..., [MASK, PAD, 17, 40]] = 5
    OPS.sample(logits, canvas)
    assert (canvas.candidate == 17).all()


def test_confidence_means_the_same_at_every_temperature():
    logits = no_eos(random_logits(5))
    p = np.exp(logits[0].astype(np.float64))
    p[:, [PAD, MASK]] = 0
    p /= p.sum(axis=1, keepdims=True)
    for heat, top_k, top_p in (
        (0.0, None, None), (1.0, None, None), (0.5, None, None), (2.0, 5, None), (1.0, 7, 0.6)
    ):  # fmt: skip
        settings = decoding(temperature=heat, top_k=top_k, top_p=top_p)
        canvas = make_canvas(settings)
        begin(canvas)
        OPS.sample(logits, canvas)
        expected = p[np.arange(BLOCK), canvas.candidate[0]]
        assert np.allclose(canvas.score, expected, rtol=1e-3)
        assert np.allclose(canvas.log_prob, np.log(expected), atol=1e-3)


def test_top_k_of_one_draws_the_greedy_token():
    logits = random_logits(6)
    greedy = make_canvas(decoding())
    narrow = make_canvas(decoding(temperature=1.0, top_k=1))
    for canvas in (greedy, narrow):
        begin(canvas)
        OPS.sample(logits, canvas)
    assert np.array_equal(greedy.candidate, narrow.candidate)
    assert np.allclose(greedy.score, narrow.score, rtol=1e-5)


@given(st.integers(0, 10**6))
def test_a_draw_depends_on_its_position_alone_not_on_its_block(seed):
    """Rows 4.. of a block at 24 are rows 0.. of a block at 28, for whichever rows both draw."""
    settings = decoding(rule="threshold", temperature=1.0)
    wide, narrow = make_canvas(settings, seed=seed), make_canvas(settings, block=8, seed=seed)
    ops, logits = OPS, random_logits(seed)
    begin(wide, [(6, 11)])
    ids = np.full(8, MASK, np.int32)
    ops.begin_block(narrow, ids, ids == MASK, position=28, first=0)
    ops.sample(logits, wide)
    ops.sample(logits[:, 4:], narrow)
    both = np.setdiff1d(np.arange(4, 12), [6])
    assert np.array_equal(wide.candidate[0, both], narrow.candidate[0, both - 4])


def test_draws_of_later_steps_do_not_repeat():
    canvas = make_canvas(decoding(rule="first_hitting"))
    begin(canvas)
    slot = canvas.place
    seen = [slot.uniforms(DrawKind.TOKEN).copy()]
    for step in range(1, 20):
        slot.step = step
        seen.append(slot.uniforms(DrawKind.TOKEN).copy())
    assert len(np.unique(np.concatenate(seen))) == 20 * BLOCK


def test_the_text_ends_at_the_first_end_token_with_nothing_masked_before_it():
    canvas = make_canvas(decoding(rule="low_confidence"))
    begin(canvas)
    ops = OPS
    canvas.ids[0, 5], canvas.masked[0, 5] = EOS, False
    canvas.score[:] = -np.arange(BLOCK)
    canvas.place.num_masked = BLOCK - 1
    canvas.candidate[:] = 9
    for expected in (1, 2, 3, 4):
        progress = commit(ops, canvas)
        assert (progress.num_final, progress.ended) == (expected, False)
    progress = commit(ops, canvas)
    assert progress[:4] == (0, 1, 5, True)
    assert not canvas.masked.any()


def test_an_end_token_of_the_prompt_does_not_end_the_text():
    canvas = make_canvas(decoding())
    ids = np.full(BLOCK, MASK, np.int32)
    ids[0] = EOS
    OPS.begin_block(canvas, ids, ids == MASK, position=0, first=1)
    OPS.sample(no_eos(random_logits(1)), canvas)
    assert not commit(OPS, canvas).ended


def test_repetition_penalty_counts_committed_tokens():
    canvas = make_canvas(decoding(rule="low_confidence", repetition_penalty=50.0))
    begin(canvas)
    ops = OPS
    logits = np.zeros((1, BLOCK, V), np.float32)
    logits[..., 20:34] = 4 + np.arange(14) * 0.01
    ops.mark_seen(canvas, np.array([33], np.int32))
    while canvas.place.num_masked:
        ops.sample(logits, canvas)
        commit(ops, canvas)
    assert len(set(canvas.ids[0].tolist())) == BLOCK
    assert 33 not in canvas.ids


def test_allowed_masks_hold_per_row():
    allowed = np.zeros((BLOCK, 3), np.uint32)
    for row in range(BLOCK):
        token = 7 * row + 1
        allowed[row, token // 32] = 1 << (token % 32)
    canvas = make_canvas(decoding(temperature=1.0), allowed=allowed)
    begin(canvas)
    OPS.sample(random_logits(3), canvas)
    assert canvas.candidate[0].tolist() == [7 * row + 1 for row in range(BLOCK)]


def test_half_precision_logits_are_read_as_they_are():
    canvas = make_canvas(decoding())
    begin(canvas)
    logits = random_logits(8)
    OPS.sample(logits.astype(np.float16), canvas)
    kept = logits[0].copy()
    kept[:, [PAD, MASK]] = -np.inf
    gap = np.sort(kept, axis=1)[:, -1] - np.sort(kept, axis=1)[:, -2]
    clear = gap > 0.02
    assert np.array_equal(canvas.candidate[0, clear], kept.argmax(axis=1)[clear])


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_ancestral_ends_at_its_last_scheduled_step(steps):
    canvas = make_canvas(decoding(rule="ancestral", steps=steps), steps=steps)
    begin(canvas)
    for step in range(steps):
        OPS.sample(no_eos(random_logits(step)), canvas)
        progress = commit(OPS, canvas)
    assert progress.num_masked == 0
