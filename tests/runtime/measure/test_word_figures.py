import math

import pytest
from dlm_edge.runtime.measure.word_figures import ngrams, repetition, word_entropy


@pytest.mark.parametrize(
    ("text", "nats"),
    [("", 0.0), ("a a a", 0.0), ("a b c d", math.log(4)), ("a a b b", math.log(2))],
)
def test_entropy_is_that_of_how_often_words_come(text, nats):
    assert word_entropy(text.split()) == pytest.approx(nats)


def test_ngrams_overlap_and_a_short_text_has_none():
    assert ngrams(["a", "b", "a", "b"], 2) == [("a", "b"), ("b", "a"), ("a", "b")]
    assert ngrams(["a"], 2) == []


def test_repetition_is_counted_text_by_text():
    assert repetition(["abcde"]) == 0
    assert repetition(["ababab"], 2) == pytest.approx(3 / 5)
    assert repetition(["abcde", "abcde"]) == 0
    assert repetition([(1, 2, 3, 4, 1, 2, 3, 4), "a"]) == pytest.approx(1 / 5)
    assert repetition(["ab"]) is None
