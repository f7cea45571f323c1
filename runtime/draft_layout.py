"""The rows of a draft-and-verify run: where each stands, and which others it sees.

A run over q = B (1 + B) rows holds B drafts and, behind them, B proposals of B masks each.
Proposal r (1 to B) is what comes next if r drafts are accepted. Counted from the number L of
cached positions:

| rows | stand at | see, besides the cache |
|---|---|---|
| draft i | i | drafts 0 to i |
| mask j of proposal r | r + j | drafts 0 to r - 1, all masks of proposal r |

Knows no model and no sampling. Source: TiDAR, arXiv 2511.08923, section 3.
"""

from __future__ import annotations

import math

import numpy as np

from .errors import ConfigError


def num_rows(block: int) -> int:
    """Gives the rows of one run that drafts `block` tokens."""
    return block * (1 + block)


def block_of(rows: int) -> int | None:
    """Gives the B with B (1 + B) = rows; None if there is none."""
    block = (math.isqrt(4 * rows + 1) - 1) // 2
    return block if block > 0 and num_rows(block) == rows else None


def draft_layout(block: int) -> tuple[np.ndarray, np.ndarray]:
    """Lays out one run.

    Args:
        block: Drafted tokens B.

    Returns:
        Offsets (q,) int32, and (q, q) float32 with 1 where the row sees the column, else 0.

    Raises:
        ConfigError: B is not positive.
    """
    if block < 1:
        raise ConfigError(f"a draft has 1 token or more, not {block}")
    accepted = np.repeat(np.arange(block + 1), block)  # 0 for drafts, r for proposal r
    place = np.tile(np.arange(block), block + 1)
    is_draft = accepted == 0
    seen_drafts = np.where(is_draft, place + 1, accepted)
    to_draft = is_draft[None, :] & (place[None, :] < seen_drafts[:, None])
    to_mask = ~is_draft[None, :] & (accepted[None, :] == accepted[:, None])
    return (accepted + place).astype(np.int32), (to_draft | to_mask).astype(np.float32)
