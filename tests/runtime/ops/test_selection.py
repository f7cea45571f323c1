import numpy as np
import pytest
from dlm_edge.runtime.ops.unmask import selection
from hypothesis import given
from hypothesis import strategies as st

scores = st.lists(
    st.floats(0, 1, width=32), min_size=1, max_size=12
).map(lambda values: np.array(values, np.float32))  # fmt: skip
ties = st.lists(st.sampled_from([0.2, 0.5, 0.9]), min_size=1, max_size=12).map(
    lambda values: np.array(values, np.float32)
)


def by_rank(values: np.ndarray) -> list[int]:
    """Highest first, lowest position among equals."""
    return sorted(range(len(values)), key=lambda i: (-values[i], i))


@given(st.one_of(scores, ties), st.integers(1, 14))
def test_highest_takes_the_best_and_the_lowest_position_among_equals(values, count):
    accept = selection.highest(values, count)
    assert set(np.flatnonzero(accept)) == set(by_rank(values)[:count])


@given(st.one_of(scores, ties), st.floats(0.01, 1))
def test_threshold_takes_all_above_it_and_always_the_best(values, limit):
    accept = selection.threshold(values, limit)
    expected = {i for i, c in enumerate(values) if c >= np.float32(limit)} | {by_rank(values)[0]}
    assert set(np.flatnonzero(accept)) == expected


@given(st.one_of(scores, ties), st.floats(0.01, 5))
def test_factor_takes_the_longest_prefix_of_its_definition(values, strength):
    accept = selection.factor(values, strength)
    order = by_rank(values)
    lengths = [
        n
        for n in range(1, len(order) + 1)
        if n == 1 or float(values[order[n - 1]]) >= 1 - strength / (n + 1)
    ]
    assert set(np.flatnonzero(accept)) == set(order[: max(lengths)])


def test_factor_leaves_out_the_last_item_when_only_that_fails():
    accept = selection.factor(np.array([0.99, 0.99, 0.5], np.float32), 1.0)
    assert accept.tolist() == [True, True, False]
    accept = selection.factor(np.array([0.99, 0.99, 0.76], np.float32), 1.0)
    assert accept.tolist() == [True, True, True]


@given(st.lists(st.integers(0, 32), min_size=1, max_size=12), st.integers(0, 24))
def test_entropy_bound_stops_once_the_entropies_before_exceed_it(eighths, bound):
    values = -np.array(eighths, np.float32) / 8  # exact in binary, so that sums are
    accept = selection.entropy_bound(values, bound / 8)
    expected, before = set(), 0
    for item in by_rank(values):
        if before > bound:
            break
        expected.add(item)
        before += eighths[item]
    assert set(np.flatnonzero(accept)) == expected


@given(st.integers(1, 64), st.integers(1, 80))
def test_a_fixed_schedule_commits_all_within_its_steps(num_masked, steps):
    counts, left = [], num_masked
    while left:
        counts.append(min(left, selection.quota(num_masked, steps, len(counts))))
        left -= counts[-1]
    assert len(counts) == min(steps, num_masked)
    assert max(counts) - min(counts) <= 1
    assert counts == sorted(counts, reverse=True)


def test_without_steps_one_position_is_committed_at_a_time():
    assert [selection.quota(5, None, step) for step in range(5)] == [1] * 5


@pytest.mark.parametrize(("uniform", "index"), [(0.0, 0), (0.24, 0), (0.25, 1), (0.999999, 3)])
def test_one_of_divides_the_unit_interval_evenly(uniform, index):
    assert np.flatnonzero(selection.one_of(4, uniform)).tolist() == [index]
