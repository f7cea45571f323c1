"""The exported form of the native backbone: one block of the canvas over a key-value cache.

| tensor | shape | dtype | role |
|---|---|---|---|
| ids | (batch, block) | int32 | canvas |
| start | (batch,) | int32 | absolute position of the block's first token |
| kv | (context, batch, layers, 2, kv_heads, head_dim) | float32 | rows >= start are ignored |
| split | (batch,) | int32 | positions before it see none from it on; 0: all see each other |
| logits | (batch, block, vocab) | float32 | raw: no token is forbidden here |
| hidden | (batch, block, dim) | float32 | in place of logits, where the head is another graph |
| kv_new | (block, batch, layers, 2, kv_heads, head_dim) | float32 | keys rotated, then values |

Prefill, denoise and commit are this one graph. With `split` half of the block, one run commits a
finished block and takes the first step of the next: block-causal models compute the same as in two
runs. Causal models have no `split`. It is traced with block and context symbolic, so there is no
control flow on data and nothing in place. Parameters are those of the Transformer it wraps;
time-conditioned models take one more input, `time` (batch, block) float32.

`LayerCacheStep` is the same causal step for CPUs: each layer has a cache of keys and one of values,
(context, batch, kv_heads, head_dim), which are read where they lie. Taken out of one tensor and
joined with the new rows they would be copied twice in every run.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .layers import Angles, Attention, rotation
from .transformer import Transformer

HIDDEN_SCORE = -1e9
"""Added to scores of invisible keys; finite, so that float16 casts and all-hidden rows stay sane
after the row maximum is subtracted."""
KeysValues = tuple[torch.Tensor, torch.Tensor]
"""Of one layer."""


class BlockStep(nn.Module):
    """Runs one block after `start` committed positions."""

    def __init__(self, model: Transformer, *, with_head: bool = True) -> None:
        """Wraps a model; without a head it gives what the head would read."""
        super().__init__()
        self.model = model
        self.with_head = with_head

    def result(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of what the head reads, or that itself."""
        return self.model.head(x) if self.with_head else x

    def visibility(
        self, start: torch.Tensor, split: torch.Tensor | None, block: torch.Tensor, context: int
    ) -> torch.Tensor:
        """Additive mask as `attend` takes it, 0 where visible."""
        rows = torch.arange(context, device=start.device)
        hidden = (rows[None, :] >= start[:, None])[:, None, None, :]
        past = hidden.to(torch.float32).expand(-1, 1, block.shape[0], -1)
        if self.model.config.causal:
            future = (block[None, :] > block[:, None])[None, None]
        else:
            if split is None:
                split = torch.zeros_like(start)
            later = block[None, :] >= split[:, None]
            future = (later[:, None, :] & ~later[:, :, None])[:, None]
        own = future.to(torch.float32).expand(past.shape[0], -1, -1, -1)
        return self.per_group(torch.cat([past, own], dim=-1) * HIDDEN_SCORE)

    def per_group(self, bias: torch.Tensor) -> torch.Tensor:
        """Repeats a mask (batch, 1, block, keys) for the heads that share a head of keys."""
        config = self.model.config
        groups = config.num_heads // config.num_kv_heads
        return bias if groups == 1 else torch.cat([bias] * groups, dim=2)

    def attend(
        self,
        attention: Attention,
        x: torch.Tensor,
        past: KeysValues,
        angles: Angles,
        bias: torch.Tensor,
    ) -> tuple[torch.Tensor, KeysValues]:
        """Attention of one layer.

        Args:
            x: Normalised input (batch, block, dim).
            past: Keys and values, (context, batch, kv_heads, head_dim) each.
            angles: Cosine and sine, (batch, block, 1, head_dim).
            bias: Additive mask, (batch, 1, groups x block, context + block): the heads of queries
                that share a head of keys are rows of one product, which reads each key once.

        Returns:
            The branch's output (batch, block, dim), and the block's keys and values, (batch, block,
            kv_heads, head_dim) each.
        """
        config = self.model.config
        query, key, value = attention.project(x, *angles)
        query = (query * config.head_dim**-0.5).transpose(1, 2)
        groups = config.num_heads // config.num_kv_heads
        if groups > 1:
            query = query.unflatten(1, (-1, groups)).flatten(2, 3)
        seen = self.seen(query, past, (key.transpose(0, 1), value.transpose(0, 1)), bias)
        if groups > 1:
            seen = seen.unflatten(2, (groups, -1)).flatten(1, 2)
        return attention.out(seen.transpose(1, 2).flatten(2)), (key, value)

    def seen(
        self, query: torch.Tensor, past: KeysValues, new: KeysValues, bias: torch.Tensor
    ) -> torch.Tensor:
        """Weighted values (batch, kv_heads, groups x block, head_dim).

        Args:
            query: The same shape, scaled.
            past: As `attend` takes it.
            new: Those of the block, in the same order of axes.
            bias: As `attend` takes it.
        """
        keys, values = (torch.cat(pair, dim=0) for pair in zip(past, new, strict=True))
        scores = query @ keys.permute(1, 2, 3, 0) + bias
        return torch.softmax(scores, dim=-1) @ values.permute(1, 2, 0, 3)

    def forward(
        self,
        ids: torch.Tensor,
        start: torch.Tensor,
        kv: torch.Tensor,
        split: torch.Tensor | None = None,
        time: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (logits or hidden, kv_new); the module's docstring has the table."""
        model = self.model
        offsets = torch.arange(ids.shape[1], device=ids.device)
        positions = start.to(torch.int64)[:, None] + offsets[None, :]
        cosine, sine = rotation(positions, model.inv_freq)
        bias = self.visibility(start, split, offsets, kv.shape[0])
        condition = None
        if model.time is not None:
            assert time is not None, "a time-conditioned model needs `time`"
            condition = model.time(time)
        x, kv_new = self.trunk(ids, (cosine, sine), kv, bias, condition)
        return self.result(x), kv_new

    def trunk(
        self,
        ids: torch.Tensor,
        angles: Angles,
        kv: torch.Tensor,
        bias: torch.Tensor,
        condition: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embedding, layers and final norm.

        Args:
            ids: (batch, block).
            angles: Cosine and sine, (batch, block, 1, head_dim).
            kv: (context, batch, layers, 2, kv_heads, head_dim).
            condition: (batch, block, dim), for models that see time.

        Returns:
            What the head reads (batch, block, dim), and kv_new.
        """
        x = F.embedding(ids, self.model.embed.weight)
        trunk, stored = self.model.trunk, []
        # A CPU copies what it takes from the cache, so each key and value is taken once.
        cache = kv.flatten(2, 3)

        def attend(attention: Attention, x: torch.Tensor, *_rest: object) -> torch.Tensor:
            past = cache[:, :, 2 * len(stored)], cache[:, :, 2 * len(stored) + 1]
            change, new = self.attend(attention, x, past, angles, bias)
            stored.append(torch.stack(new, dim=2))
            return change

        for layer in trunk.layers:
            x = layer(x, angles, condition=condition, attend=attend)
        return trunk.final_norm(x, condition), torch.stack(stored, dim=2).transpose(0, 1)


class LayerCacheStep(BlockStep):
    """The causal step with caches of its own for each layer; the module's docstring says why."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, ids: torch.Tensor, start: torch.Tensor, *caches: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Runs one block.

        Args:
            ids: (batch, block).
            start: (batch,).
            caches: Keys and values of each layer in turn, (context, batch, kv_heads, head_dim).

        Returns:
            Logits or hidden, and the new rows of each cache, (block, batch, kv_heads, head_dim).
        """
        model, stored = self.model, []
        offsets = torch.arange(ids.shape[1], device=ids.device)
        positions = start.to(torch.int64)[:, None] + offsets[None, :]
        angles = rotation(positions, model.inv_freq)
        bias = self.visibility(start, None, offsets, caches[0].shape[0])

        def attend(attention: Attention, x: torch.Tensor, *_rest: object) -> torch.Tensor:
            past = caches[len(stored)], caches[len(stored) + 1]
            change, new = self.attend(attention, x, past, angles, bias)
            stored.extend(part.transpose(0, 1) for part in new)
            return change

        x = F.embedding(ids, model.embed.weight)
        for layer in model.trunk.layers:
            x = layer(x, angles, attend=attend)
        return self.result(model.trunk.final_norm(x, None)), *stored

    def seen(
        self, query: torch.Tensor, past: KeysValues, new: KeysValues, bias: torch.Tensor
    ) -> torch.Tensor:
        """Does the same without joining keys or values: only scores are joined."""
        parts = [query @ keys.permute(1, 2, 3, 0) for keys in (past[0], new[0])]
        weights = torch.softmax(torch.cat(parts, dim=-1) + bias, dim=-1)
        shares = weights.split([past[1].shape[0], new[1].shape[0]], dim=-1)
        before, own = (
            share @ values.permute(1, 2, 0, 3)
            for share, values in zip(shares, (past[1], new[1]), strict=True)
        )
        return before + own


class Head(nn.Module):
    """The head as a graph of its own, over the rows whose logits are wanted."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.head = model.head

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor]:
        """(batch, block, dim) to (batch, block, vocab)."""
        head = self.model.head
        assert isinstance(head, nn.Linear)
        return (head(rows),)
