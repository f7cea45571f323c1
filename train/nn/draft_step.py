"""The exported form of a causal backbone that drafts and verifies: rows placed by its inputs.

| tensor | shape | dtype | role |
|---|---|---|---|
| ids | (batch, block) | int32 | canvas |
| start | (batch,) | int32 | number of valid cache rows |
| offsets | (batch, block) | int32 | row i is at position start + offsets[i] |
| visible | (batch, block, block) | float32 | 1 where the row sees the column, 0 where not |
| kv | (context, batch, layers, 2, kv_heads, head_dim) | float32 | rows >= start are ignored |
| logits | (batch, block, vocab) | float32 | raw; graph `step` as a whole |
| hidden | (batch, block, dim) | float32 | in place of logits, where the head is another graph |
| kv_new | (block, batch, layers, 2, kv_heads, head_dim) | float32 | keys rotated, then values |

`block` counts rows: 1 for plain causal decoding, B (1 + B) for B drafts and their proposals. All
rows see the whole cache, and of each other what `visible` says; each must see itself. The head
apart, as graph `head`, reads `rows` (batch, block, dim) float32, role hidden_rows, and gives
logits.

The layers are `BlockStep`'s. Source: TiDAR, arXiv 2511.08923.
"""

from __future__ import annotations

import torch

from .block_step import HIDDEN_SCORE, BlockStep
from .layers import rotation


class DraftStep(BlockStep):
    """Runs rows at any positions behind `start`, under any visibility among themselves."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        ids: torch.Tensor,
        start: torch.Tensor,
        offsets: torch.Tensor,
        visible: torch.Tensor,
        kv: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (logits or hidden, kv_new); the module's docstring has the table."""
        positions = (start[:, None] + offsets).to(torch.int64)
        angles = rotation(positions, self.model.inv_freq)
        rows = torch.arange(kv.shape[0], device=start.device)
        past = (rows[None, :] >= start[:, None])[:, None].to(torch.float32)
        past = past.expand(-1, ids.shape[1], -1)
        hidden = torch.cat([past, 1.0 - visible], dim=2)[:, None] * HIDDEN_SCORE
        x, kv_new = self.trunk(ids, angles, kv, self.per_group(hidden))
        return self.result(x), kv_new
