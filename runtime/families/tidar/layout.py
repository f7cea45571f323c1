"""Which row of a TiDAR run stands where and sees what: the tables of its three kinds of runs.

| run | rows |
|---|---|
| prefill | known ids, causal |
| open | the last known ids, causal, then B masks that see these and each other, then filler |
| draft and verify | B drafts, causal, then B proposals of B masks |

Proposal r = 1..B assumes that r drafts are accepted: its masks stand r positions behind the first
draft, see the drafts before that and each other. What is in the KV cache every row sees, so that
the tables hold the columns of the run's own rows only, and nothing in them changes with the text.

Knows no text, no cache and no engine. Source: TiDAR (arXiv 2511.08923) section 3.
"""

from __future__ import annotations

import numpy as np

from ..layout import Layout, causal_layout


def draft_rows(block: int) -> int:
    """Gives the rows of a run that drafts and verifies `block` tokens: B (1 + B)."""
    return block * (1 + block)


def open_layout(block: int, count: int) -> Layout:
    """Gives the layout of the run that makes the first draft of a text.

    Args:
        block: B masks.
        count: Known ids before them, from 1 to B².
    """
    rows = draft_rows(block)
    assert 1 <= count <= rows - block
    end = count + block
    visible = np.tri(rows, dtype=np.float32)
    visible[count:end, :end] = 1.0
    visible[end:] = np.eye(rows, dtype=np.float32)[end:]
    return Layout(offsets=causal_layout(rows).offsets, visible=visible)


def draft_layout(block: int) -> Layout:
    """Gives the layout of a run that verifies B drafts and proposes what may follow each."""
    within = np.arange(block, dtype=np.int32)
    proposals = np.arange(1, block + 1, dtype=np.int32)
    offsets = np.concatenate([within, (proposals[:, None] + within).reshape(-1)])
    visible = np.zeros((len(offsets), len(offsets)), np.float32)
    visible[:block, :block] = np.tri(block)
    for proposal in proposals:
        own = slice(proposal * block, (proposal + 1) * block)
        visible[own, :proposal] = 1.0
        visible[own, own] = 1.0
    return Layout(offsets=offsets, visible=visible)
