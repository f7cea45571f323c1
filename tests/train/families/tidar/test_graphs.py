"""The shapes that a draft-and-verify step is offered at."""

import pytest
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.train.families.tidar.graphs import draft_shapes, head_shapes

KNOWN = {"trained": (4, 8), "max_position": 128}


def sizes(shapes):
    return [(shape.dims["rows"], shape.dims.get("context", 0)) for shape in shapes]


def test_each_draft_length_is_a_number_of_rows_beside_one_for_token_by_token():
    found = draft_shapes((4, 8), (64,), **KNOWN)
    assert sizes(found) == [(1, 64), (20, 64), (72, 64)]
    assert [(shape.purpose, shape.block) for shape in found] == [
        ("step", None), ("draft", 4), ("draft", 8),
    ]  # fmt: skip
    assert sizes(head_shapes((4, 8), (64,), **KNOWN)) == [(1, 0), (4, 0), (8, 0)]


def test_without_a_wish_the_trained_lengths_that_fit_are_offered():
    assert sizes(draft_shapes((), (), trained=(4, 16), max_position=128)) == [
        (1, 64), (20, 64), (1, 128), (20, 128),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "why"), [((12,), "156 rows"), (("full",), "whole canvas"), ((0,), "from 1 to 128")]
)
def test_a_length_that_cannot_be_is_refused(asked, why):
    with pytest.raises(ConfigError, match=why):
        draft_shapes(asked, (), **KNOWN)
    with pytest.raises(ConfigError, match="fits its 16"):
        draft_shapes((), (), trained=(8,), max_position=16)
