import math
from dataclasses import replace

import numpy as np
from dlm_edge.calibration.losses.loss import LossText, Ratio, cut_texts, decoded_blocks, worst
from dlm_edge.runtime.families.table import load_model
from dlm_edge.runtime.measure.evaluate import evaluate_ids, windows_of
from table_engines import TableEngines, hashed, make_manifest

TEXT = LossText(windows=[np.zeros(5, np.int32), np.zeros(3, np.int32)], num_samples=4, seed=0)


def test_a_change_of_every_token_by_the_same_nats_is_known_exactly():
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((4, 2)) * 100
    found = reference + np.array([[4 * 0.01, 2 * 0.01]])
    ratio = TEXT.ratio(found, reference)
    assert math.isclose(ratio.value, math.exp(0.01), rel_tol=1e-9)
    assert math.isclose(ratio.low, ratio.high, rel_tol=1e-9)
    spread = TEXT.perplexity(found)
    assert spread["high"] / spread["low"] > 2


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Differences with a known mean: about 95 of 100 intervals hold it."""
    rng = np.random.default_rng(1)
    text = LossText(windows=[np.zeros(11, np.int32)] * 20, num_samples=8, seed=0)
    zero = np.zeros((8, 20))
    hits = 0
    for _ in range(400):
        ratio = text.ratio(rng.normal(0.1, 0.5, (8, 20)), zero)
        hits += ratio.low <= math.exp(0.1 * 20 / 200) <= ratio.high
    assert 0.91 <= hits / 400 <= 0.99


def test_a_shorter_text_keeps_whole_windows():
    assert len(TEXT.shortened(1).windows) == 1
    assert TEXT.shortened(5).num_tokens == 6
    assert TEXT.shortened(10**6) == LossText(windows=TEXT.windows, num_samples=4, seed=0)


def table(scale):
    return TableEngines(hashed(12, scale=scale), [(4, 8), (4, 16)], 12)


def test_a_ratio_in_pairs_is_that_of_the_perplexities_and_far_better_known():
    ids = np.random.default_rng(3).integers(0, 9, 60).astype(np.int32)
    reference, close = table(2.0), table(2.02)
    manifest = make_manifest(reference)
    windows = windows_of(load_model(manifest, reference), ids)
    text = LossText(windows=windows, num_samples=4, seed=5)
    before, after = (
        text.totals(load_model(manifest, reference)),
        text.totals(load_model(manifest, close)),
    )
    figures = [
        evaluate_ids(load_model(manifest, engines), ids, seed=5, max_samples=4)
        for engines in (reference, close)
    ]
    assert math.isclose(text.perplexity(before)["perplexity"], figures[0].perplexity)
    ratio = text.ratio(after, before)
    assert math.isclose(ratio.value, figures[1].perplexity / figures[0].perplexity, rel_tol=1e-9)
    spread = math.log(figures[0].perplexity_high / figures[0].perplexity_low)
    assert math.log(ratio.high / ratio.low) < spread / 10
    assert text.ratio(before, before).high == 1.0


def test_a_family_with_an_exact_likelihood_is_measured_once():
    engines = TableEngines(hashed(12, causal=True), [(1, 16), (4, 16)], 12)
    manifest = make_manifest(engines, family="ar")
    ids = np.random.default_rng(3).integers(1, 9, 30).astype(np.int32)
    text = LossText(windows=windows_of(load_model(manifest, engines), ids), num_samples=4, seed=5)
    assert len(text.totals(load_model(manifest, engines))) == 1


def test_the_worst_of_several_is_the_one_whose_interval_reaches_highest():
    steady = Ratio(value=1.004, low=1.0035, high=1.0045, block=32)
    vague = Ratio(value=1.001, low=0.995, high=1.007, block=16)
    assert worst([steady, vague]) is vague
    assert (worst([steady]).place, Ratio(value=1, low=1, high=1).place) == (" at blocks of 32", "")


def test_one_text_is_cut_for_every_block_size_that_texts_are_decoded_by():
    engines = TableEngines(hashed(12), [(2, 16), (4, 16), (8, 16), (16, 8)], 12)
    manifest = replace(make_manifest(engines), block_sizes=(2, 4, 16), max_position=16)
    assert decoded_blocks(load_model(manifest, engines)) == (4, 2, 16)
    named = replace(manifest, decoding={"block_size": 2})
    assert decoded_blocks(load_model(named, engines)) == (2, 4, 16)
    ids = np.random.default_rng(3).integers(0, 9, 50).astype(np.int32)
    texts = cut_texts(load_model(manifest, engines), ids, num_samples=4, seed=5)
    assert [text.block for text in texts] == [4, 2, 16]
    for text in texts:
        alone = evaluate_ids(
            load_model(manifest, engines), ids, block_size=text.block, seed=5, max_samples=4
        )
        found = text.perplexity(text.totals(load_model(manifest, engines)))["perplexity"]
        assert math.isclose(found, alone.perplexity)
        assert text.ratio(
            text.totals(load_model(manifest, engines)), text.totals(load_model(manifest, engines))
        ).block == (text.block)


def test_a_causal_model_has_no_choice_of_block_sizes():
    engines = TableEngines(hashed(12, causal=True), [(1, 16), (4, 16)], 12)
    manifest = make_manifest(engines, family="ar")
    assert decoded_blocks(load_model(manifest, engines)) == (None,)
