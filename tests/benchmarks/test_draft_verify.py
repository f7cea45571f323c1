"""What the drafting benchmark counts."""

from __future__ import annotations

from dlm_edge.benchmarks.draft_verify import first_repeat, settings_of


def test_a_text_counts_up_to_the_first_n_gram_that_comes_back() -> None:
    text = [1, 2, 3, 4, 5, 6, 1, 2, 3, 7]
    # The n-gram 1, 2, 3 stands again at index 6; with two given, four tokens stand before it.
    assert first_repeat(text, 2, size=3) == 4
    assert first_repeat(text, 2, size=4) == len(text) - 2


def test_what_repeats_within_the_prompt_does_not_count() -> None:
    assert first_repeat([1, 1, 1, 1, 2, 3], 4, size=2) == 2


def test_a_repeat_that_reaches_back_into_the_prompt_leaves_nothing() -> None:
    assert first_repeat([1, 2, 3, 1, 2, 3], 5, size=3) == 0


def test_the_causal_contestant_is_the_same_bundle_without_drafts() -> None:
    assert settings_of(None)["rule"] == "next_token"
    assert settings_of(4)["block_size"] == 4
