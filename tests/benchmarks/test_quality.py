import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from dlm_edge.benchmarks.quality import (
    compare,
    cut_words,
    judge_ratio,
    main,
    match_lengths,
    read_texts,
)
from dlm_edge.calibration.losses.text_quality import measure
from dlm_edge.runtime.errors import DataError
from dlm_edge.runtime.measure.judge import TextScore


def test_entropy_of_different_words_is_the_logarithm_of_their_number() -> None:
    quality = measure(["a b c d", "e f g h"])
    assert quality.unigram_entropy == pytest.approx(math.log(4))
    assert quality.pooled_entropy == pytest.approx(math.log(8))


def test_entropy_of_one_repeated_word_is_zero_and_all_but_one_4_gram_repeat() -> None:
    quality = measure(["no " * 10])
    assert quality.unigram_entropy == 0.0
    assert quality.distinct_4 == pytest.approx(1 / 7)
    assert quality.repetition == pytest.approx(6 / 7)


def test_distinct_4_counts_over_all_texts_and_repetition_within_each() -> None:
    quality = measure(["a b c d e"] * 3)
    assert quality.distinct_4 == pytest.approx(2 / 6)
    assert quality.repetition == 0.0


def test_distinct_4_interval_is_the_jackknife_of_leaving_each_text_out() -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abc"), size=int(rng.integers(5, 30)))) for _ in range(12)]
    quality = measure(texts)
    without = np.array([measure(texts[:i] + texts[i + 1 :]).distinct_4 for i in range(12)])
    error = math.sqrt(11 / 12 * np.square(without - without.mean()).sum())
    low, high = quality.distinct_4_interval
    assert (high - low) / 2 == pytest.approx(1.96 * error)


def test_judge_interval_holds_the_value_and_narrows_with_the_number_of_texts() -> None:
    rng = np.random.default_rng(0)
    scores = [TextScore(bits=n, num_chars=100) for n in rng.normal(130, 30, 400).tolist()]
    widths = []
    for count in (25, 400):
        quality = measure(["a b c d"] * count, scores[:count])
        assert quality.judge_interval is not None
        assert quality.judge_bits_per_char is not None
        low, high = quality.judge_interval
        assert low < quality.judge_bits_per_char < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_a_set_costs_nothing_against_itself() -> None:
    scores = [TextScore(bits=100.0 + i, num_chars=80) for i in range(50)]
    ratio = judge_ratio(scores, scores)
    assert ratio["ratio"] == 1.0
    assert ratio["low"] < 1 < ratio["high"]


def test_cutting_keeps_the_white_space_between_words() -> None:
    assert cut_words('  "Hi,"\nshe  said. Bye', 3) == '"Hi,"\nshe  said.'
    assert cut_words("a b", 5) == "a b"


def test_matched_sets_have_equal_lengths_and_say_what_was_left_out() -> None:
    matched, short = match_lengths({"x": ["a b c", "a", "b c d e"], "y": ["q r s t"]}, 3)
    assert matched == {"x": ["a b c"], "y": ["q r s"]}
    assert short == {"x": 1, "y": 0}
    with pytest.raises(DataError, match="lower --words"):
        match_lengths({"x": ["a"]}, 2)


def test_comparison_runs_without_a_judge() -> None:
    result = compare({"x": ["a b c d e"] * 2, "y": ["f g h i j", "k l m n o"]}, 5)
    assert result["x"]["judge_bits_per_char"] is None
    assert result["y"]["distinct_4"] == 1.0


def test_texts_come_from_separated_text_and_from_samples(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("one\n<|endoftext|>\n\n<|endoftext|>\ntwo", encoding="utf-8")
    (tmp_path / "s.json").write_text(json.dumps({"samples": [{"text": "three"}]}))
    assert read_texts(tmp_path / "t.txt") == ["one", "two"]
    assert read_texts(tmp_path / "s.json") == ["three"]
    (tmp_path / "s.json").write_text("[]")
    with pytest.raises(DataError, match=r"samples\.py"):
        read_texts(tmp_path / "s.json")


def test_no_text_is_an_error() -> None:
    with pytest.raises(DataError, match="not one word"):
        measure(["", "  "])


def test_command_prints_a_table_and_records_its_circumstances(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a b c d e<|endoftext|>f g h i j", encoding="utf-8")
    out = tmp_path / "out.json"
    arguments = [f"human={tmp_path / 't.txt'}", "--words", "4", "--out", str(out)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "| human" in result.output
    written = json.loads(out.read_text("utf-8"))
    assert written["sets"]["human"]["num_texts"] == 2
    assert {"date", "command", "machine", "versions"} <= set(written)
    assert str(tmp_path) not in json.dumps(written["command"])
