"""Parts of the native transformer: norm, rotary positions, attention, gated MLP, time embedding.

Hot in training on a CPU, so each part makes few passes over memory: queries, keys and values come
from one matrix, gate and up from one, and the rotation is applied to queries and keys in one go.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from .attention import attend
from .config import NORM_EPS, ROPE_THETA, ModelConfig, RopeScaling

Angles = tuple[torch.Tensor, torch.Tensor]
"""Cosine and sine of positions, as `rotation` gives them."""


class RMSNorm(nn.Module):
    """Scales rows to unit mean square; the statistics are float32 whatever the input is."""

    def __init__(self, dim: int, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, dim) to the same shape and dtype."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * scale * self.weight).to(x.dtype)


class LayerNorm(nn.Module):
    """Takes off each row's mean and scales it to unit variance; statistics are float32."""

    def __init__(self, dim: int, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, dim) to the same shape and dtype."""
        wide = x.float()
        wide = wide - wide.mean(-1, keepdim=True)
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        # In this order: else the exporter makes one operator of it, whose statistics would be in
        # the type of x.
        return (wide * (scale * self.weight) + self.bias).to(x.dtype)


def make_norm(config: ModelConfig) -> RMSNorm | LayerNorm:
    """Makes a norm of the residual stream."""
    return (LayerNorm if config.layer_norm else RMSNorm)(config.dim, config.norm_eps)


def inverse_frequencies(
    head_dim: int,
    theta: float = ROPE_THETA,
    scaling: RopeScaling | None = None,
    *,
    reciprocal: bool = False,
) -> torch.Tensor:
    """Angles per position of the rotary embedding, (head_dim / 2,) float32.

    Args:
        scaling: How long wavelengths are stretched; None: not at all.
        reciprocal: Rounds as Hugging Face does. The last bit counts: at position 30,000 it turns
            an angle by a thousandth.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    rates = 1.0 / theta**exponents if reciprocal else theta**-exponents
    if scaling is None:
        return rates
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.context / (2 * math.pi / rates)
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1.0 - kept) * rates / scaling.factor + kept * rates


def rotation(positions: torch.Tensor, inv_freq: torch.Tensor) -> Angles:
    """Cosine and sine for `rotate`, each (…, T, 1, head_dim) float32, from positions (…, T)."""
    angles = positions.to(torch.float32)[..., None] * inv_freq
    angles = torch.cat([angles, angles], dim=-1).unsqueeze(-2)
    return torch.cos(angles), torch.sin(angles)


def training_rotation(positions: torch.Tensor, inv_freq: torch.Tensor) -> Angles:
    """The same in autocast's dtype: else queries and keys would be widened to float32, and
    attention with them."""
    cosine, sine = rotation(positions, inv_freq)
    if torch.is_autocast_enabled(inv_freq.device.type):
        narrow = torch.get_autocast_dtype(inv_freq.device.type)
        cosine, sine = cosine.to(narrow), sine.to(narrow)
    return cosine, sine


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotates the two halves of each head; x: (…, T, heads, head_dim)."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine


class Attention(nn.Module):
    """Grouped-query attention with one fused projection for queries, keys and values.

    Its rows are the heads of queries, then of keys, then of values.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.head_dim
        width, kv_width = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.qkv = nn.Linear(config.dim, width + 2 * kv_width, bias=config.qkv_bias)
        self.out = nn.Linear(width, config.dim, bias=False)
        norms = config.head_dim, config.norm_eps
        self.query_norm = RMSNorm(*norms) if config.qk_norm else None
        self.key_norm = RMSNorm(*norms) if config.qk_norm else None

    def project(
        self, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries (…, T, heads, head_dim), keys and values (…, T, kv_heads, head_dim) of x.

        Args:
            x: Normalised input (…, T, dim).
            cosine: As `rotation` gives it; queries and keys come back rotated.
        """
        total = self.num_heads + 2 * self.num_kv_heads
        heads = self.qkv(x).unflatten(-1, (total, self.head_dim))
        turning, value = heads.split([total - self.num_kv_heads, self.num_kv_heads], dim=-2)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = turning.split([self.num_heads, self.num_kv_heads], dim=-2)
            turning = torch.cat([self.query_norm(query), self.key_norm(key)], dim=-2)
        turned = rotate(turning, cosine, sine)
        query, key = turned.split([self.num_heads, self.num_kv_heads], dim=-2)
        return query, key, value

    def forward(
        self,
        x: torch.Tensor,
        angles: Angles,
        mask: torch.Tensor | None = None,
        num_outputs: int | None = None,
    ) -> torch.Tensor:
        """Attends within x (B, T, dim).

        Args:
            angles: Cosine and sine, (T, 1, head_dim) each, in x's compute dtype.
            mask: (T, T) bool, True = visible; None = everything.
            num_outputs: Only the first this many positions are queries; None: all.

        Returns:
            (B, num_outputs, dim).
        """
        query, key, value = (part.transpose(1, 2) for part in self.project(x, *angles))
        seen = attend(query[:, :, :num_outputs], key, value, mask)
        return self.out(seen.transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    """SwiGLU with one fused matrix for gate (first half) and up (second half)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.dim, 2 * config.hidden_dim, bias=False)
        self.down = nn.Linear(config.hidden_dim, config.dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, dim) to the same shape."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class PlainMLP(nn.Module):
    """Two matrices with biases, and GELU between them in its form with a hyperbolic tangent."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.dim, config.hidden_dim)
        self.down = nn.Linear(config.hidden_dim, config.dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, dim) to the same shape."""
        x = self.up(x)
        # Written out: TensorRT 10.3 reads opset 20's Gelu in part only. x^2 first, for float16.
        bent = torch.tanh(math.sqrt(2.0 / math.pi) * x * (1.0 + 0.044715 * x * x))
        return self.down(0.5 * x * (1.0 + bent))


def make_mlp(config: ModelConfig) -> GatedMLP | PlainMLP:
    """Makes the MLP of a layer."""
    return (PlainMLP if config.plain_mlp else GatedMLP)(config)


class TimeEmbedding(nn.Module):
    """Sinusoids of the mask chance in [0, 1], then a two-layer MLP."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.hidden = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, time: torch.Tensor) -> torch.Tensor:
        """(…) float32 to (…, dim)."""
        half = self.dim // 2
        steps = torch.arange(half, dtype=torch.float32, device=time.device)
        angles = 1000.0 * time[..., None] * torch.exp(steps * (-math.log(10000.0) / half))
        waves = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
        return self.out(F.silu(self.hidden(waves)))
