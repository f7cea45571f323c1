"""The native backbone: a pre-norm transformer, bidirectional or under any visibility mask.

Knows no objective: a mask matrix, the positions and the rows whose logits are wanted come from
the family. The same weights run as the exported graph in `block_step.py`.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .config import ModelConfig
from .layers import Attention, GatedMLP, RMSNorm, TimeEmbedding, inverse_frequencies, rotation
from .nats import nats_of

INIT_STD = 0.02


class Layer(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = GatedMLP(config)
        self.dropout = nn.Dropout(config.dropout)
        self.modulation = (
            nn.Linear(config.dim, 6 * config.dim) if config.time_conditioning else None
        )

    def modulate(self, condition: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Scale, shift and gate of both branches (adaLN-zero), each (B, T, dim)."""
        assert self.modulation is not None
        return self.modulation(condition).chunk(6, dim=-1)

    def forward(
        self,
        x: torch.Tensor,
        cosine: torch.Tensor,
        sine: torch.Tensor,
        mask: torch.Tensor | None,
        condition: torch.Tensor | None,
        num_outputs: int,
    ) -> torch.Tensor:
        """(B, T, dim) to (B, num_outputs, dim); see Attention.forward."""
        normed = self.attention_norm(x)
        x = x[:, :num_outputs]
        if condition is None:
            x = x + self.dropout(self.attention(normed, cosine, sine, mask, num_outputs))
            return x + self.dropout(self.mlp(self.mlp_norm(x)))
        scale, shift, *rest = self.modulate(condition)
        normed = normed * (1.0 + scale) + shift
        gate, mlp_scale, mlp_shift, mlp_gate = (part[:, :num_outputs] for part in rest)
        x = x + gate * self.dropout(self.attention(normed, cosine, sine, mask, num_outputs))
        normed = self.mlp_norm(x) * (1.0 + mlp_scale) + mlp_shift
        return x + mlp_gate * self.dropout(self.mlp(normed))


class Trunk(nn.Module):
    """All layers and the final norm: the part whose shapes are fixed, so compile this one."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.recompute = False
        """Whether training keeps only what enters each layer, and computes the rest twice."""

    def forward(
        self,
        x: torch.Tensor,
        cosine: torch.Tensor,
        sine: torch.Tensor,
        mask: torch.Tensor | None,
        condition: torch.Tensor | None,
        num_outputs: int,
    ) -> torch.Tensor:
        """(B, T, dim) to (B, num_outputs, dim).

        The last layer computes the first `num_outputs` positions only: of the others nobody
        needs more than the keys and values.
        """
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            wanted = num_outputs if index == last else x.shape[1]
            inputs = (x, cosine, sine, mask, condition, wanted)
            if self.recompute and self.training:
                x = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                x = layer(*inputs)
        return self.norm(x)


class Transformer(nn.Module):
    """Embedding, trunk and head."""

    inv_freq: torch.Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        self.time = TimeEmbedding(config.dim) if config.time_conditioning else None
        self.trunk = Trunk(config)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embed.weight
        rates = inverse_frequencies(
            config.head_dim, config.rope_theta, reciprocal=config.backbone != "native"
        )
        self.register_buffer("inv_freq", rates, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weights: normal(0.02), branches' last matrices smaller by sqrt(2 layers)."""
        residual = INIT_STD / math.sqrt(2 * self.config.num_layers)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                is_last = name.endswith(("attention.out", "mlp.down"))
                nn.init.normal_(module.weight, std=residual if is_last else INIT_STD)
                if name.endswith(".modulation"):
                    nn.init.zeros_(module.weight)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        rows: torch.Tensor | None = None,
        num_outputs: int | None = None,
        time: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        forbidden: tuple[int, ...] = (),
    ) -> torch.Tensor:
        """Computes raw logits, or losses.

        Args:
            ids: (B, T) integers.
            positions: (T,) integers; may repeat, as in [x_t | x_0].
            mask: (T, T) bool, True = visible; None = all positions see each other.
            rows: Indices (N,) int64 into the flattened (B, num_outputs) grid whose logits are
                wanted; None = all.
            num_outputs: Only the first this many positions get logits; default T.
            time: (B, T) float32 mask chance; needed with time conditioning, else ignored.
            targets: Tokens that `rows` should predict, (N,): asks for their nats instead of logits.
            forbidden: Tokens that are never predicted; with `targets` only.

        Returns:
            Logits (N, V) with `rows`, else (B, num_outputs, V), in the compute dtype; nats (N,)
            float32 with `targets`.
        """
        x = self.embed(ids)
        cosine, sine = rotation(positions, self.inv_freq)
        if torch.is_autocast_enabled(x.device.type):
            # Else the rotation would widen queries and keys to float32 and attention with them.
            narrow = torch.get_autocast_dtype(x.device.type)
            cosine, sine = cosine.to(narrow), sine.to(narrow)
        condition = None
        if self.time is not None:
            assert time is not None, "a time-conditioned model needs `time`"
            condition = self.time(time)
        wanted = ids.shape[1] if num_outputs is None else num_outputs
        hidden = self.trunk(x, cosine, sine, mask, condition, wanted)
        if rows is not None:
            hidden = hidden.flatten(0, 1).index_select(0, rows)
        if targets is not None:
            return nats_of(self.head, hidden, targets, forbidden)
        return self.head(hidden)
