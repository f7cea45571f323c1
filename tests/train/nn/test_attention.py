"""Segmented attention against the fused kernel."""

import pytest
import torch
import torch.nn.functional as F
from dlm_edge.train.nn.attention import attend
from dlm_edge.train.nn.masks import block_diffusion_mask, causal_mask

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("mask", "num_queries"),
    [
        (block_diffusion_mask(96, 16, CPU), 192),
        (block_diffusion_mask(96, 32, CPU), 96),
        (block_diffusion_mask(200, 200, CPU), 400),
        (causal_mask(150, CPU), 150),
        (None, 70),
    ],
)
def test_segments_give_what_the_fused_kernel_gives_with_gradients(mask, num_queries):
    torch.manual_seed(0)
    length = 70 if mask is None else mask.shape[0]
    inputs = [torch.randn(2, 3, length, 8, requires_grad=True) for _ in range(3)]
    query = inputs[0][:, :, :num_queries]
    visible = None if mask is None else mask[:num_queries]
    expected = F.scaled_dot_product_attention(query, inputs[1], inputs[2], attn_mask=visible)
    found = attend(query, inputs[1], inputs[2], mask)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
    probe = torch.randn_like(found)
    wanted = torch.autograd.grad(expected, inputs, probe)
    given = torch.autograd.grad(found, inputs, probe)
    for one, other in zip(given, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=5e-6, rtol=1e-4)
