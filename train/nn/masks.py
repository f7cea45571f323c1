"""Who sees whom in training: boolean (queries, keys) matrices, True = visible.

Source: BD3-LM (arXiv 2503.09573), section 3.1 and appendix B.6.
"""

from __future__ import annotations

from functools import lru_cache

import torch


@lru_cache(maxsize=16)
def block_diffusion_mask(length: int, block_size: int, device: torch.device) -> torch.Tensor:
    """Mask of the input [x_t | x_0], both of `length` positions.

    A noisy position sees its own noisy block (M_BD) and the clean blocks before it (M_OBC); a
    clean position sees its own clean block and those before it (M_BC). Nothing clean sees
    anything noisy, so the clean half computes just what the KV cache holds when decoding.

    Returns:
        (2 length, 2 length) bool.
    """
    block = torch.arange(length, device=device) // block_size
    query, key = block[:, None], block[None, :]
    noisy = torch.cat([query == key, query > key], dim=1)
    clean = torch.cat([torch.zeros_like(query == key), query >= key], dim=1)
    return torch.cat([noisy, clean])


@lru_cache(maxsize=16)
def causal_mask(length: int, device: torch.device) -> torch.Tensor:
    """Lower triangle, (length, length) bool."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()
