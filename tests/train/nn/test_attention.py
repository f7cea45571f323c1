"""Segmented attention against the fused kernel."""

import pytest
import torch
import torch.nn.functional as F
from dlm_edge.train.nn.attention import attend, block_mask_of, tiled_attention
from dlm_edge.train.nn.masks import block_diffusion_mask, causal_mask, draft_mask

CPU = torch.device("cpu")
MASKS = [
    (block_diffusion_mask(96, 16, CPU), 192),
    (block_diffusion_mask(96, 32, CPU), 96),
    (block_diffusion_mask(200, 200, CPU), 400),
    (causal_mask(150, CPU), 150),
    (draft_mask(100, 12, CPU), 200),
]


@pytest.mark.parametrize(("mask", "num_queries"), [*MASKS, (None, 70)])
@pytest.mark.parametrize("kv_heads", [6, 2, 1])
def test_segments_give_what_the_fused_kernel_gives_with_gradients(mask, num_queries, kv_heads):
    torch.manual_seed(0)
    length = 70 if mask is None else mask.shape[0]
    inputs = [
        torch.randn(2, heads, length, 8, requires_grad=True) for heads in (6, kv_heads, kv_heads)
    ]
    query = inputs[0][:, :, :num_queries]
    visible = None if mask is None else mask[:num_queries]
    key, value = (x.repeat_interleave(6 // kv_heads, dim=1) for x in inputs[1:])
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
    found = attend(query, inputs[1], inputs[2], mask)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
    probe = torch.randn_like(found)
    wanted = torch.autograd.grad(expected, inputs, probe)
    given = torch.autograd.grad(found, inputs, probe)
    for one, other in zip(given, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=5e-6, rtol=1e-4)


@pytest.mark.parametrize(("mask", "num_queries"), MASKS)
@pytest.mark.parametrize("kv_heads", [6, 2])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_tiles_give_what_segments_give(mask, num_queries, kv_heads):
    torch.manual_seed(0)
    length = mask.shape[0]
    query, key, value = (torch.randn(2, heads, length, 16) for heads in (6, kv_heads, kv_heads))
    query = query[:, :, :num_queries]
    found = tiled_attention(query, key, value, mask)
    torch.testing.assert_close(found, attend(query, key, value, mask), atol=2e-6, rtol=1e-5)


def test_tiles_that_a_mask_hides_are_not_computed():
    # Of [x_t | x_0] at 4 tiles each: noisy tiles see their own and the clean ones before.
    tiles = block_mask_of(block_diffusion_mask(512, 128, CPU), 1024)
    assert tiles.kv_num_blocks.sum() + tiles.full_kv_num_blocks.sum() == 4 + 6 + 10
