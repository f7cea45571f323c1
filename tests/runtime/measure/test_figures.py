import json
import math

import numpy as np
import pytest
from dlm_edge.runtime.measure.figures import FORMS, Measured, difference, ratio


def test_a_mean_leaves_out_texts_without_a_value():
    assert Measured.mean([1.0, None, 3.0]).figure == 2.0


def test_a_perplexity_is_of_all_texts_together():
    rows = np.array([[math.log(2) * 10, 10], [math.log(8) * 30, 30]])
    assert Measured(rows, "perplexity").figure == pytest.approx(2**0.25 * 8**0.75)


def test_the_interval_is_the_one_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(5, 2, 400).tolist()
    found = Measured.mean(values).interval()
    error = np.std(values) / 20
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.3 * error)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.3 * error)


def test_a_pair_shows_a_difference_that_two_sets_do_not():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 10, 200)
    one, other = Measured.mean(hard.tolist()), Measured.mean((hard + 0.5).tolist())
    paired = difference(one, other)
    assert paired.value == pytest.approx(0.5)
    assert paired.low == pytest.approx(0.5)
    alone = difference(one, Measured.mean((hard + 0.5).tolist()[:199]))
    assert alone.low < 0 < alone.high


def test_a_ratio_is_in_pairs():
    size = np.random.default_rng(0).uniform(1, 9, 50)
    one, other = Measured.mean(size.tolist()), Measured.mean((2 * size).tolist())
    assert tuple(ratio(one, other)) == pytest.approx((2, 2, 2))


def test_no_text_with_a_value_gives_no_figure():
    assert Measured.mean([None, None]).interval().to_json() == dict.fromkeys(
        ("value", "low", "high")
    )


@pytest.mark.parametrize("value", [None, 0.7])
def test_json_gives_the_figure_and_its_pairs_again(value):
    one = Measured.mean([0.5, 0.25, 1.0], value)
    again = Measured.of_json(json.loads(json.dumps(one.to_json())))
    assert again.figure == one.figure
    assert np.array_equal(again.draws(), one.draws())


def test_every_form_takes_many_sums_at_once():
    sums = np.random.default_rng(0).uniform(1, 2, (5, 10))
    for form in FORMS.values():
        assert form(sums) == pytest.approx([float(form(row)) for row in sums])
