import math

import numpy as np
import pytest
from dlm_edge.runtime.errors import DataError
from dlm_edge.runtime.measure.judge import TextScore
from dlm_edge.runtime.measure.text_quality import (
    cut_words,
    known_words,
    longest_repeat,
    ngrams,
    repetition,
    text_figures,
    word_entropy,
)


def figures(texts, **given):
    return {name: one.figure for name, one in text_figures(texts, **given).items()}


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


@pytest.mark.parametrize(
    ("text", "words"), [("", 0), ("a b c", 0), ("a b a b", 2), ("x a b c y a b c", 3), ("a a a", 2)]
)
def test_the_longest_repeat_is_found(text, words):
    assert longest_repeat(text.split()) == words


def test_the_longest_repeat_is_that_of_trying_every_pair():
    rng = np.random.default_rng(0)
    for _ in range(50):
        words = rng.choice(list("abc"), 12).tolist()
        pairs = ((i, j) for i in range(12) for j in range(i + 1, 12))
        tried = (
            max((n for n in range(13 - j) if words[i : i + n] == words[j : j + n]), default=0)
            for i, j in pairs
        )
        assert longest_repeat(words) == max(tried)


def test_one_repeated_word_has_no_entropy_and_all_but_one_4_gram_repeat():
    found = figures(["no " * 10])
    assert found["entropy"] == 0.0
    assert found["distinct_4"] == pytest.approx(1 / 7)
    assert found["repetition"] == pytest.approx(6 / 7)
    assert found["longest_repeat"] == 9


def test_distinct_4_counts_over_all_texts_and_repetition_within_each():
    found = figures(["a b c d e"] * 3)
    assert found["distinct_4"] == pytest.approx(2 / 6)
    assert found["repetition"] == 0.0


def test_the_interval_of_distinct_4_is_the_jackknife_of_leaving_each_text_out():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abc"), size=int(rng.integers(5, 30)))) for _ in range(40)]
    found = text_figures(texts)["distinct_4"].interval()
    without = np.array([figures(texts[:i] + texts[i + 1 :])["distinct_4"] for i in range(40)])
    error = math.sqrt(39 / 40 * np.square(without - without.mean()).sum())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_an_empty_text_keeps_its_place_and_counts_for_nothing():
    found = text_figures(
        ["a b c d", "", "e f g h"], [TextScore(nats=9, num_tokens=3, num_chars=7), None, None]
    )
    assert {len(one.rows) for one in found.values()} == {3}
    assert found["entropy"].figure == pytest.approx(math.log(4))
    assert found["judge_perplexity"].figure == pytest.approx(math.exp(3))
    assert found["judge_bits_per_char"].figure == pytest.approx(9 / math.log(2) / 7)


def test_known_words_are_counted_without_case_and_punctuation():
    known = known_words(["The dog's tail, and a cat."])
    found = figures(["Dog's cat! the xyz 12"], known=known)
    assert found["known_words"] == pytest.approx(3 / 4)


def test_cutting_keeps_the_white_space_between_words():
    assert cut_words("  a\n\nb c d", 3) == "a\n\nb c"
    assert cut_words("a b", 5) == "a b"


def test_no_text_is_an_error():
    with pytest.raises(DataError, match="not one word"):
        text_figures(["", "  "])
