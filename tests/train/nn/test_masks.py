"""Visibility masks against their definition, position by position."""

import torch
from dlm_edge.train.nn.masks import block_diffusion_mask, causal_mask

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
