"""Visibility masks against their definition, position by position."""

import pytest
import torch
from dlm_edge.train.nn.masks import block_diffusion_mask, causal_mask, draft_mask

CPU = torch.device("cpu")


def test_block_diffusion_mask_is_the_union_of_its_three_parts():
    length, size = 12, 4
    mask = block_diffusion_mask(length, size, CPU)
    for query in range(2 * length):
        for key in range(2 * length):
            query_block, key_block = query % length // size, key % length // size
            match query < length, key < length:
                case True, True:
                    expected = query_block == key_block
                case True, False:
                    expected = query_block > key_block
                case False, False:
                    expected = query_block >= key_block
                case _:
                    expected = False
            assert bool(mask[query, key]) == expected


def test_causal_mask_shows_each_position_itself_and_the_past():
    assert causal_mask(3, CPU).tolist() == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


@pytest.mark.parametrize(("length", "size"), [(12, 4), (10, 3), (7, 7), (5, 2)])
def test_draft_mask_is_the_table_of_the_paper_bit_by_bit(length, size):
    mask = draft_mask(length, size, CPU)
    assert mask.shape == (2 * length, 2 * length)
    for query in range(2 * length):
        for key in range(2 * length):
            i, j = query % length, key % length
            match query < length, key < length:
                case True, True:  # clean to clean: causal
                    expected = j <= i
                case True, False:  # clean to mask: never
                    expected = False
                case False, True:  # mask to clean: strictly earlier blocks
                    expected = j < (i // size) * size
                case _:  # mask to mask: its own block, both ways
                    expected = i // size == j // size
            assert bool(mask[query, key]) == expected


def test_draft_mask_of_two_blocks_written_out():
    rows = [
        "1000 0000",
        "1100 0000",
        "1110 0000",
        "1111 0000",
        "0000 1100",
        "0000 1100",
        "1100 0011",
        "1100 0011",
    ]
    found = ["".join("01"[int(x)] for x in row) for row in draft_mask(4, 2, CPU)]
    assert found == [row.replace(" ", "") for row in rows]
