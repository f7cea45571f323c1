from itertools import combinations

import numpy as np
import pytest
from dlm_edge.runtime.errors import ConfigError, DataError
from dlm_edge.runtime.families.likelihood import levels, negative_log_likelihood
from dlm_edge.runtime.families.table import find_family, load_model
from dlm_edge.runtime.measure.evaluate import (
    cut_windows,
    evaluate_ids,
    half_width,
    student_quantile,
)
from dlm_edge.runtime.noise.schedule import SCHEDULES, make_schedule
from table_engines import TableEngines, hashed, joint_model, make_manifest

V = 8  # 0 end of text, 7 mask, 6 padding


def random_joint(seed: int, length: int = 4, num_ids: int = 3) -> np.ndarray:
    joint = np.random.default_rng(seed).gamma(0.5, size=(num_ids,) * length)
    return joint / joint.sum()


def mdlm_bound(engines, window, samples, block, seed=0):
    bounds = find_family("mdlm").bound(
        load_model(make_manifest(engines), engines),
        [np.array(window, np.int32)],
        seed=seed,
        samples=range(samples),
        block_size=block,
    )
    return next(iter(bounds))


def test_block_size_one_is_the_exact_causal_likelihood():
    joint = random_joint(1)
    engines = TableEngines(joint_model(joint, V - 1, V), [(1, 8)], V)
    text = (0, 2, 1, 1)
    nats = mdlm_bound(engines, text, 1, 1)[0]
    for position in range(1, 4):
        prefix = joint[text[:position]].sum()
        longer = joint[text[: position + 1]].sum()
        assert nats[position] == pytest.approx(-np.log(longer / prefix), abs=1e-5)
    assert nats[0] == 0


@pytest.mark.parametrize("block", [2, 4])
def test_the_bound_of_an_exact_denoiser_is_the_likelihood(block):
    joint = random_joint(2)
    engines = TableEngines(joint_model(joint, V - 1, V), [(2, 8), (4, 8)], V)
    text = (0, 2, 1, 1)
    totals = mdlm_bound(engines, text, 600, block).sum(axis=1)
    exact = -np.log(joint[text] / joint[text[:1]].sum())
    pairs = (totals[0::2] + totals[1::2]) / 2
    assert abs(pairs.mean() - exact) < 4 * pairs.std() / np.sqrt(len(pairs)) + 1e-4


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bound_is_the_time_integral_of_any_schedule(schedule):
    engines = TableEngines(hashed(V), [(4, 8)], V)
    manifest = make_manifest(engines)
    text = np.array([0, 3, 5, 2], np.int32)
    noise = make_schedule(schedule)
    times = (np.arange(200_000) + 0.5) / 200_000
    moved, weight = noise.move_chance(times), noise.weight(times)
    exact = 0.0
    for count in (1, 2, 3):
        chance = (weight * moved**count * (1 - moved) ** (3 - count)).mean()
        # Up to the share that the schedules' clipping leaves out, this is 1 / (k * C(3, k)).
        assert chance == pytest.approx(1 / (count * (3, 3, 1)[count - 1]), rel=0.01)
        for masked in combinations((1, 2, 3), count):
            ids = text.copy()
            ids[list(masked)] = V - 1
            rows = hashed(V)(np.zeros(0, int), ids)[list(masked)]
            nll = negative_log_likelihood(rows, text[list(masked)], (V - 2, V - 1))
            exact += nll.sum() / (count * (3, 3, 1)[count - 1])
    bounds = find_family("mdlm").bound(
        load_model(manifest, engines), [text], seed=3, samples=range(800), block_size=4
    )
    totals = next(iter(bounds)).sum(axis=1)
    pairs = (totals[0::2] + totals[1::2]) / 2
    assert abs(pairs.mean() - exact) < 4 * pairs.std() / np.sqrt(len(pairs))


def test_a_denoiser_that_sees_time_is_told_a_chance_that_fits_its_masks():
    engines = TableEngines(hashed(V), [(8, 16)], V, timed=True)
    mdlm_bound(engines, (0, *([1, 2, 3] * 5)), 400, 8)
    clean, chances = [], {k: [] for k in range(1, 9)}
    for time, (_, _, start, ids) in zip(engines.times, engines.runs, strict=True):
        count = ids.count(V - 1)
        if not count:
            clean.append(time[0])
        elif start == 8:
            chances[count].append(time[0])
    assert set(clean) == {0.0}
    for count, values in chances.items():  # Beta(k, M - k + 1) has the mean k / (M + 1)
        assert np.mean(values) == pytest.approx(count / 9, abs=0.09)


def test_levels_visit_every_stratum_once_and_pairs_mirror():
    first, second = levels(64, 9, 6), levels(64, 9, 7)
    assert sorted((first * 64).astype(int)) == list(range(64))
    assert np.allclose(first + second, 1)
    assert not np.array_equal(levels(64, 9, 8), first)
    position = np.arange(64) % 8
    assert abs(np.corrcoef(position, first)[0, 1]) < 0.4


def test_samples_do_not_depend_on_which_others_are_drawn():
    engines = TableEngines(hashed(V), [(4, 8)], V)
    manifest = make_manifest(engines)
    windows = [np.array([0, 1, 2, 3, 4, 5, 1, 2], np.int32)] * 3

    def run(samples):
        model = load_model(manifest, engines)
        return np.stack(list(model.family.bound(model, windows, seed=1, samples=samples)))

    assert np.array_equal(run(range(6))[:, 2:], run(range(2, 6)))


def test_the_causal_likelihood_is_exact_whatever_the_block():
    table = hashed(V, causal=True)
    text = np.array([0, 3, 5, 2, 1, 1, 4, 2, 3, 5], np.int32)
    rows = table(np.zeros(0, int), text)
    expected = negative_log_likelihood(rows[:-1], text[1:], (V - 2,))
    for shapes in ([(1, 16), (4, 16)], [(2, 8), (2, 16)], [(1, 16)]):
        engines = TableEngines(table, shapes, V)
        manifest = make_manifest(engines, family="ar")
        model = load_model(manifest, engines)
        nats = next(model.family.bound(model, [text], seed=0, samples=range(2)))
        assert np.allclose(nats[:, 1:], expected, atol=1e-5)
        assert (nats[:, 0] == 0).all()


def test_windows_score_every_token_but_the_first_once():
    ids = np.arange(100)
    windows = cut_windows(ids, 17, 4)
    scored = np.concatenate([window[1:] for window in windows])
    assert np.array_equal(scored, np.arange(1, 1 + len(scored)))
    assert all(len(window) == 17 for window in windows[:-1])
    assert len(windows[-1]) % 4 == 0 or len(windows[-1]) == 17
    assert len(cut_windows(np.arange(23), 17, 4)) == 1  # 7 tokens left: fewer than two blocks
    assert [len(window) for window in cut_windows(np.arange(7), 17, 4)] == [4]
    with pytest.raises(DataError):
        cut_windows(np.arange(3), 17, 4)


def test_evaluation_reaches_its_target_and_encloses_the_exact_value():
    engines = TableEngines(hashed(V, scale=1.0), [(4, 16)], V)
    manifest = make_manifest(engines, max_position=16)
    ids = np.random.default_rng(4).integers(1, 6, size=400)
    seen = []
    result = evaluate_ids(
        load_model(manifest, engines), ids, relative_half_width=0.05, max_samples=200,
        progress=lambda done, planned: seen.append((done, planned)),
    )  # fmt: skip
    assert seen[-1][0] == seen[-1][1]
    assert result.perplexity_low < result.perplexity < result.perplexity_high
    assert result.perplexity_high / result.perplexity <= 1.05
    again = evaluate_ids(
        load_model(manifest, engines), ids, relative_half_width=0.05, max_samples=200
    )
    assert again == result
    better = evaluate_ids(
        load_model(manifest, engines), ids, seed=1, relative_half_width=0.02, max_samples=400
    )
    assert result.perplexity_low * 0.98 < better.perplexity < result.perplexity_high * 1.02
    assert result.num_tokens == 26 * 15 + 7  # the last, shorter window is cut to two blocks


def test_exact_families_need_one_sample_and_have_no_interval():
    engines = TableEngines(hashed(V, causal=True), [(1, 16), (4, 16)], V)
    manifest = make_manifest(engines, family="ar", max_position=16)
    result = evaluate_ids(load_model(manifest, engines), np.arange(60) % 6)
    assert result.num_samples == 1
    assert result.perplexity_low == result.perplexity == result.perplexity_high


def test_intervals_hold_the_mean_nineteen_times_in_twenty():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        draws = rng.normal(size=(6, 20)) * rng.gamma(1.0, size=20)
        inside += abs(draws.mean(axis=0).sum()) / 20 <= half_width(draws, 20)
    assert 0.92 < inside / 400 < 0.98


def test_student_quantiles_are_the_tabulated_ones():
    for freedom, value in ((3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (1e9, 1.960)):
        assert student_quantile(freedom) == pytest.approx(value, rel=0.012)


def test_texts_with_mask_or_foreign_tokens_are_refused():
    engines = TableEngines(hashed(V), [(4, 16)], V)
    manifest = make_manifest(engines)
    for token in (V - 1, V - 2, V, -1):
        with pytest.raises(DataError):
            evaluate_ids(load_model(manifest, engines), np.array([0, 1, 2, token, 1, 2, 3, 1]))
    with pytest.raises(ConfigError):
        evaluate_ids(load_model(manifest, engines), np.arange(8) % 6, context=64)
