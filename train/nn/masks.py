"""Who sees whom in training: boolean (queries, keys) matrices, True = visible.

Source: BD3-LM (arXiv 2503.09573), section 3.1 and appendix B.6; what differs names its own.
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


@lru_cache(maxsize=16)
def draft_mask(length: int, block_size: int, device: torch.device) -> torch.Tensor:
    """Mask of the input [x | masks], both of `length` positions, by which a model learns to draft.

    A clean position sees the clean ones up to itself; a mask sees the clean ones of earlier blocks
    and the masks of its own block. Nothing clean sees a mask, and no mask its own block's text: so
    the clean half is a causal model, and no label can leak.

    Source: TiDAR (arXiv 2511.08923), section 3.1.

    Returns:
        (2 length, 2 length) bool.
    """
    place = torch.arange(length, device=device)
    block = place // block_size
    same = block[:, None] == block[None, :]
    clean = torch.cat([place[:, None] >= place[None, :], torch.zeros_like(same)], dim=1)
    masks = torch.cat([block[:, None] > block[None, :], same], dim=1)
    return torch.cat([clean, masks])
