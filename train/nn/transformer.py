"""The native backbone: a pre-norm transformer, bidirectional or under any visibility mask.

Knows no objective: a mask matrix, the positions and the rows whose logits are wanted come from
the family. The same weights run as the exported graph in `block_step.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ...runtime.errors import ConfigError
from .config import ModelConfig
from .layers import (
    Angles,
    Attention,
    TimeEmbedding,
    inverse_frequencies,
    make_mlp,
    make_norm,
    training_rotation,
)

INIT_STD = 0.02

Attend = Callable[[Attention, torch.Tensor, Angles, torch.Tensor | None, int | None], torch.Tensor]
"""From a layer's attention, its input (B, T, dim), angles, mask and `num_outputs` to the branch's
output (B, num_outputs, dim)."""


def fused_attention(
    attention: Attention,
    x: torch.Tensor,
    angles: Angles,
    mask: torch.Tensor | None,
    num_outputs: int | None,
) -> torch.Tensor:
    """Attention as training computes it."""
    return attention(x, angles, mask, num_outputs)


class Layer(nn.Module):
    """Attention and MLP, each behind a norm and added to the residual stream.

    With a condition, both are scaled, shifted and gated by it (adaLN-zero).
    """

    def __init__(self, config: ModelConfig, condition_dim: int | None = None) -> None:
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = Attention(config)
        self.mlp_norm = make_norm(config)
        self.mlp = make_mlp(config)
        self.dropout = nn.Dropout(config.dropout)
        self.modulation = nn.Linear(condition_dim, 6 * config.dim) if condition_dim else None

    def forward(
        self,
        x: torch.Tensor,
        angles: Angles,
        mask: torch.Tensor | None = None,
        condition: torch.Tensor | None = None,
        num_outputs: int | None = None,
        attend: Attend = fused_attention,
    ) -> torch.Tensor:
        """Runs one layer.

        Args:
            x: (B, T, dim).
            condition: For layers that have one: (B, condition), or (B, T, condition), one per
                position.
            num_outputs: Only the first this many positions are computed; None: all.
            attend: Attention as called here; exported graphs have forms of their own.

        Returns:
            (B, num_outputs, dim).
        """
        normed = self.attention_norm(x)
        x = _first(x, num_outputs)
        if self.modulation is None:
            x = x + self.dropout(attend(self.attention, normed, angles, mask, num_outputs))
            return x + self.dropout(self.mlp(self.mlp_norm(x)))
        assert condition is not None, "a conditioned layer needs a condition"
        scale, shift, *rest = _modulated(self.modulation, condition, 6)
        normed = normed * (1.0 + scale) + shift
        gate, mlp_scale, mlp_shift, mlp_gate = (_first(part, num_outputs) for part in rest)
        x = x + gate * self.dropout(attend(self.attention, normed, angles, mask, num_outputs))
        normed = self.mlp_norm(x) * (1.0 + mlp_scale) + mlp_shift
        return x + mlp_gate * self.dropout(self.mlp(normed))


def _modulated(
    modulation: nn.Linear, condition: torch.Tensor, count: int
) -> tuple[torch.Tensor, ...]:
    """Scales, shifts and gates of a condition, each (B, T or 1, dim)."""
    values = modulation(condition)
    return (values if values.dim() == 3 else values[:, None]).chunk(count, dim=-1)


def _first(x: torch.Tensor, count: int | None) -> torch.Tensor:
    """The first positions of x (B, T, ...); a traced graph gets no slice that keeps everything."""
    return x if count is None else x[:, :count]


class Trunk(nn.Module):
    """All layers and the final norm: the part whose shapes are fixed, so compile this one."""

    def __init__(
        self,
        config: ModelConfig,
        condition_dim: int | None = None,
        *,
        condition_norm: bool = False,
    ) -> None:
        """Makes the layers.

        Args:
            condition_dim: Width of the condition that layers see; None: they see none.
            condition_norm: Whether the final norm is scaled and shifted by it, too.
        """
        super().__init__()
        layers = (Layer(config, condition_dim) for _ in range(config.num_layers))
        self.layers = nn.ModuleList(layers)
        self.norm = make_norm(config)
        modulated = condition_dim if condition_norm else None
        self.modulation = nn.Linear(modulated, 2 * config.dim) if modulated else None
        self.recompute = False
        """Whether training keeps only what enters each layer, and computes the rest twice."""

    def forward(
        self,
        x: torch.Tensor,
        angles: Angles,
        mask: torch.Tensor | None = None,
        condition: torch.Tensor | None = None,
        num_outputs: int | None = None,
        attend: Attend = fused_attention,
    ) -> torch.Tensor:
        """(B, T, dim) to (B, num_outputs, dim); arguments as Layer takes them.

        The last layer computes the first `num_outputs` positions only: of the others only
        the keys and values are needed.
        """
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            wanted = num_outputs if index == last else None
            inputs = (x, angles, mask, condition, wanted, attend)
            if self.recompute and self.training:
                x = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                x = layer(*inputs)
        return self.final_norm(x, condition)

    def final_norm(self, x: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        """(B, T, dim) to what the head reads."""
        normed = self.norm(x)
        if self.modulation is None:
            return normed
        assert condition is not None, "a conditioned norm needs a condition"
        scale, shift = _modulated(self.modulation, condition, 2)
        return normed * (1.0 + scale) + shift


LARGEST = 2**26
"""Logits held at once: 256 MiB in float32, a few times over in the loss and its gradient."""


def cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, forbidden: tuple[int, ...]
) -> torch.Tensor:
    """Negative log-probability of targets (N,) under logits (N, V), in float32 nats.

    Forbidden tokens have probability 0: their logits count as minus infinity.
    """
    logits = logits.float()
    if forbidden:
        columns = torch.tensor(forbidden, device=logits.device)
        logits = logits.index_fill(1, columns, float("-inf"))
    return F.cross_entropy(logits, targets.long(), reduction="none")


def nats_of(
    head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor, forbidden: tuple[int, ...]
) -> torch.Tensor:
    """Negative log-likelihoods (N,) float32 of targets (N,) by a head over hidden rows (N, dim).

    Few logits are computed in one go. More are computed by the slice, and again in the backward
    pass: 4,096 tokens of a vocabulary of 151,936 would take several times 5 GB otherwise.
    """
    vocab = getattr(head, "out_features", 1)
    if len(hidden) * vocab <= LARGEST:
        return cross_entropy(head(hidden), targets, forbidden)
    size = max(LARGEST // vocab, 1)

    def part(rows: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return cross_entropy(head(rows), wanted, forbidden)

    slices = zip(hidden.split(size), targets.split(size), strict=True)
    return torch.cat([checkpoint(part, *each, use_reentrant=False) for each in slices])


def init_weights(model: nn.Module, num_layers: int) -> None:
    """Draws weights: normal(0.02), branches' last matrices smaller by sqrt(2 layers); modulations
    start at 0."""
    residual = INIT_STD / math.sqrt(2 * num_layers)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            is_last = name.endswith(("attention.out", "mlp.down"))
            nn.init.normal_(module.weight, std=residual if is_last else INIT_STD)
            if name.endswith(".modulation"):
                nn.init.zeros_(module.weight)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


class Transformer(nn.Module):
    """Embedding, trunk and head."""

    inv_freq: torch.Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        self.time = TimeEmbedding(config.dim) if config.time_conditioning else None
        self.trunk = Trunk(config, config.dim if config.time_conditioning else None)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=config.head_bias)
        if config.tie_embeddings:
            self.head.weight = self.embed.weight
        rates = inverse_frequencies(
            config.head_dim,
            config.rope_theta,
            config.rope_scaling,
            reciprocal=config.backbone != "native",
        )
        self.register_buffer("inv_freq", rates, persistent=False)
        init_weights(self, config.num_layers)

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
        angles = training_rotation(positions, self.inv_freq)
        condition = None
        if self.time is not None:
            assert time is not None, "a time-conditioned model needs `time`"
            condition = self.time(time)
        hidden = self.trunk(x, angles, mask, condition, num_outputs)
        if rows is not None:
            hidden = hidden.flatten(0, 1).index_select(0, rows)
        if targets is not None:
            return nats_of(self.head, hidden, targets, forbidden)
        return self.head(hidden)


def make_backbone(values: Mapping[str, Any], *, causal: bool | None = None) -> nn.Module:
    """Builds the denoiser from the `model` part of config.json.

    Raises:
        ConfigError: A value is unknown or out of range, or the model is one for another family.
    """
    config = ModelConfig.from_json(values)
    if causal is not None and config.causal != causal:
        raise ConfigError(
            f"the model has causal {str(config.causal).lower()}, which is not this family's; "
            "name the family it was trained with"
        )
    return Transformer(config)
