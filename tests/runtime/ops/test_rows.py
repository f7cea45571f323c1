import numpy as np
import pytest
from dlm_edge.runtime.errors import EngineError
from dlm_edge.runtime.ops.rows.host import (
    FEW_ROWS,
    RowScratch,
    draw,
    entropy,
    exponentiate,
    highest,
    locate,
    margin,
    process,
    sum_chunks,
    truncate,
)
from hypothesis import given
from hypothesis import strategies as st

vocab_sizes = st.sampled_from([2, 5, 63, 64, 65, 200, 1000])
seeds = st.integers(0, 2**31)


def naive_truncate(weights: np.ndarray, top_k: int | None, top_p: float | None) -> np.ndarray:
    """The definition: sort by weight descending and id ascending, then cut."""
    order = np.lexsort((np.arange(len(weights)), -weights))
    order = order[: top_k or len(order)]
    if top_p is not None:
        running = np.cumsum(weights[order], dtype=np.float64)
        total = running[-1] if top_k else weights.sum()
        order = order[: int(np.argmax(running >= top_p * total)) + 1]
    out = np.zeros_like(weights)
    out[order] = weights[order]
    return out


@given(vocab_sizes, seeds, st.one_of(st.none(), st.integers(1, 70)), st.booleans())
def test_truncation_equals_its_definition_by_sorting(size, seed, top_k, coarse):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=size) * 4
    weights = np.exp(np.round(logits) if coarse else logits).astype(np.float32)
    weights /= weights.max()
    top_p = float(rng.uniform(0.05, 1)) if rng.random() < 0.7 or top_k is None else None
    expected = naive_truncate(weights, top_k, top_p)
    truncate(weights, top_k, top_p)
    differing = int(np.count_nonzero(weights != expected))
    assert differing <= (1 if top_p is not None else 0)  # a sum within rounding of the share
    assert np.count_nonzero(weights) >= 1


def test_truncation_keeps_the_lowest_ids_among_equals():
    weights = np.array([0.5, 1.0, 0.5, 0.5, 0.0], np.float32)
    truncate(weights, 3, None)
    assert weights.tolist() == [0.5, 1.0, 0.5, 0.0, 0.0]


def fill(scratch: RowScratch, rows: np.ndarray) -> None:
    for slot, row in enumerate(rows):
        scratch.weights[slot][:] = row
        sum_chunks(scratch, slot)


@given(vocab_sizes, seeds)
def test_draws_invert_the_distribution_function(size, seed):
    rng = np.random.default_rng(seed)
    rows = np.exp(rng.normal(size=(20, size)) * 3).astype(np.float32)
    rows[:, rng.random(size) < 0.2] = 0
    rows[:, rng.integers(size)] = 1
    uniforms = rng.random(20)
    uniforms[0], uniforms[1] = 0.0, 1 - 2.0**-53
    scratch = RowScratch(20, size)
    fill(scratch, rows)
    ids = draw(scratch, uniforms)
    running = np.cumsum(rows, axis=1, dtype=np.float64)
    for row, token, uniform, cumulative in zip(rows, ids, uniforms, running, strict=True):
        assert row[token] > 0
        exact = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
        if token != exact:
            edges = cumulative / cumulative[-1]
            assert np.abs(edges - uniform).min() < 1e-5


def test_drawn_frequencies_are_the_probabilities():
    rng = np.random.default_rng(0)
    weights = np.exp(rng.normal(size=150)).astype(np.float32)
    probabilities = weights / weights.sum()
    counts = np.zeros(150)
    scratch = RowScratch(100, 150)
    fill(scratch, np.repeat(weights[None], 100, axis=0))
    for _ in range(200):
        np.add.at(counts, draw(scratch, rng.random(100)), 1)
    expected = probabilities * 20_000
    assert ((counts - expected) ** 2 / expected).sum() < 208  # chi-square, 149 degrees, 0.1 %


def test_chunks_are_summed_in_the_documented_order():
    rng = np.random.default_rng(1)
    scratch = RowScratch(1, 640)
    scratch.weights[0][:] = np.exp(rng.normal(size=640) * 5).astype(np.float32)
    sum_chunks(scratch, 0)
    for chunk, got in zip(scratch.chunks[0], scratch.sums[0], strict=True):
        s = chunk[:8].copy()
        for start in range(8, 64, 8):
            s += chunk[start : start + 8]
        assert got == ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]))


@given(vocab_sizes, seeds)
def test_statistics_equal_their_float64_definitions(size, seed):
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=size) * 3).astype(np.float32)
    scratch = RowScratch(1, size)
    process(scratch, logits, banned=np.array([0]))
    first, top = highest(scratch.logits)
    weights = scratch.weights[0]
    exponentiate(scratch.logits, top, 1.0, weights)
    total = sum_chunks(scratch, 0)
    p = np.exp(logits.astype(np.float64))
    p[0] = 0
    p /= p.sum()
    assert first == p.argmax()
    assert 1 / total == pytest.approx(p.max(), rel=1e-4)
    exact = -(p[p > 0] * np.log(p[p > 0])).sum()
    assert entropy(scratch, weights, top, total) == pytest.approx(exact, abs=2e-4)
    ordered = np.sort(p)
    assert margin(weights, first, total) == pytest.approx(ordered[-1] - ordered[-2], abs=1e-4)


def test_processing_applies_bias_then_penalty_then_bans():
    scratch = RowScratch(1, 40)
    row = np.linspace(-2, 1.9, 40).astype(np.float16)
    allowed = np.full(2, 0xFFFFFFFF, np.uint32)
    allowed[1] &= ~np.uint32(1 << 2)  # token 34
    logits = process(
        scratch,
        row,
        banned=np.array([3]),
        bias=np.where(np.arange(40) == 5, 4, 0).astype(np.float32),
        allowed=allowed,
        seen=np.array([0, 5]),
        penalty=2.0,
    )
    assert logits[0] == 2 * np.float32(row[0])
    assert logits[5] == (np.float32(row[5]) + 4) / 2
    assert np.isneginf(logits[[3, 34]]).all()
    assert logits[20] == np.float32(row[20])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_without_a_finite_highest_logit_are_an_error(value):
    row = np.full(8, -np.inf, np.float32)
    row[2] = value
    with pytest.raises(EngineError):
        highest(row)


@given(vocab_sizes, seeds)
def test_rows_located_one_by_one_and_all_together_are_the_same(size, seed):
    rng = np.random.default_rng(seed)
    count = 3 * FEW_ROWS
    scratch = RowScratch(count, size)
    scratch.weights[:] = rng.random((count, size)) ** rng.choice([1, 20])
    scratch.weights[rng.random((count, size)) < 0.5] = 0
    scratch.weights[:, rng.integers(size)] = 0.3
    for slot in range(count):
        sum_chunks(scratch, slot)
    uniforms = rng.random(count)
    uniforms[:3] = (0.0, 1 - 2.0**-53, 0.5)
    rows = rng.permutation(count)
    together = locate(scratch.chunks, scratch.sums, rows, uniforms)
    for first in range(0, count, FEW_ROWS):
        some = slice(first, first + FEW_ROWS)
        found = locate(scratch.chunks, scratch.sums, rows[some], uniforms[some])
        assert np.array_equal(found, together[some])
        assert (scratch.weights[rows[some], found] > 0).all()
