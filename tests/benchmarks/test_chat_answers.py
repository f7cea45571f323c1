"""The arithmetic of the comparison of answers; its figures are not asserted."""

from click.testing import CliRunner
from dlm_edge.benchmarks.chat_answers import QUESTIONS, compared, main, parted_at


def test_answers_part_at_the_first_token_that_differs_or_where_the_shorter_ends():
    assert parted_at([1, 2, 3], [1, 2, 4]) == 2
    assert parted_at([1, 2], [1, 2, 4]) == 2
    assert parted_at([], [1]) == 0


def test_missing_tokens_are_not_equal():
    found = compared([[1, 2, 3], [5]], [[1, 9, 3, 4], [5]])
    assert found == {"until_parted": 1, "equal_percent": 60.0, "equal_answers": 1}


def test_there_are_fifty_different_questions():
    assert len(set(QUESTIONS)) == len(QUESTIONS) == 50


def test_bundles_of_one_name_are_refused_before_any_is_asked(tmp_path):
    paths = [tmp_path / folder / "model.dlm" for folder in "ab"]
    for path in paths:
        path.parent.mkdir()
        path.touch()
    result = CliRunner().invoke(main, list(map(str, paths)))
    assert result.exit_code != 0
    assert "two of the files are named model.dlm" in result.stderr
