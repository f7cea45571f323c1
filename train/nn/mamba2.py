"""Bidirectional Mamba-2: the backbone `mamba2`, in plain torch.

A mixer is a state-space model per head. With the step dt > 0, the decay A < 0, inputs x and the
projections B and C, all but A functions of the position t, its state h (head_dim, state_size) is

    h_t = exp(dt_t A) h_(t-1) + dt_t x_t B_t^T        y_t = h_t C_t + D x_t

and three forms compute it: the recurrence (the definition, which tests hold the others to), chunks
(`ssd_chunked`, for training: products within a chunk, states between chunks) and one product
(`ssd_matrix`, for export: a fixed length, no loop). A layer adds a mixer that reads forwards and
one that reads backwards; the latter is the former on flipped inputs, or the matrix of the other
triangle.

A mixer's parameters have the names and layouts of the package `mamba_ssm`, so that its weights can
be loaded. Knows no objective.

Source: Mamba-2 (arXiv 2405.21060), sections 3 and 6; adaLN-zero: DiT (arXiv 2212.09748).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ...runtime.errors import ConfigError
from .config import NORM_EPS, with_preset
from .layers import RMSNorm

CHUNK = 64
"""Positions whose mixing is one product in training; between chunks, states are passed on."""
KERNEL = 4
"""Positions that the convolution before the state space sees: the own one and those before it."""
HEAD_DIM = 64
"""Default channels of a head."""
STEP_RANGE = (1e-3, 1e-1)
"""Range of dt at the start of training."""
DECAY_RANGE = (1.0, 16.0)
"""Range of -A at the start of training."""
NEVER = -1e4
"""exp of it is 0 in every float format, float16 included."""
INIT_STD = 0.02
CONDITIONINGS = ("adaln", "film", "add")

PRESETS: Mapping[str, Mapping[str, int]] = {
    "tiny": {"dim": 128, "num_layers": 2},  # 0.5 M beside the vocabulary's rows
    "small": {"dim": 256, "num_layers": 4},  # 4.0 M
    "medium": {"dim": 384, "num_layers": 6},  # 12.6 M
    "large": {"dim": 512, "num_layers": 6},  # 22 M
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2Config:
    """Shape of the backbone."""

    dim: int
    """Width of the residual stream."""
    num_layers: int
    num_heads: int
    """Heads of a mixer; each has expand x dim / num_heads channels and one decay."""
    state_size: int = 64
    """Numbers that a channel's state has."""
    expand: int = 2
    """Channels of a mixer over the width."""
    conditioning: str = "adaln"
    """How layers see the time: `adaln` (scale, shift and a gate that starts at 0), `film` (scale
    and shift) or `add` (a vector is added)."""
    dropout: float = 0.0
    """Share of each branch's values dropped in training."""

    def __post_init__(self) -> None:
        for name in ("dim", "num_layers", "expand", "state_size", "num_heads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"model {name} must be a positive integer, not {value!r}")
        if self.inner % self.num_heads:
            raise ConfigError(
                f"the {self.inner} channels of a mixer (expand {self.expand} x dim {self.dim}) are "
                f"no multiple of {self.num_heads} heads; choose another --heads"
            )
        if self.state_size % 8:
            raise ConfigError(
                f"--state-size {self.state_size} must be a multiple of 8, which matrix units take"
            )
        if self.conditioning not in CONDITIONINGS:
            raise ConfigError(
                f"--conditioning {self.conditioning!r}: choose one of {', '.join(CONDITIONINGS)}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"model dropout must be in [0, 1), not {self.dropout!r}")

    @property
    def inner(self) -> int:
        """Channels of a mixer."""
        return self.expand * self.dim

    def to_json(self) -> dict[str, Any]:
        """Gives a flat mapping."""
        return {"backbone": "mamba2", **asdict(self)}


def read_shape(values: Mapping[str, Any]) -> Mamba2Config:
    """Reads the backbone's part of a flat mapping; what is not of the backbone is left alone."""
    own = {item.name for item in fields(Mamba2Config)}
    if values.get("backbone", "mamba2") != "mamba2":
        raise ConfigError(f"backbone {values['backbone']!r} is not mamba2, which this family has")
    try:
        return Mamba2Config(**{name: values[name] for name in own if name in values})
    except TypeError as error:
        raise ConfigError(f"model config is incomplete: {error}") from error


def resolve_shape(options: Mapping[str, Any]) -> Mamba2Config:
    """Makes the shape from a preset's name and what overrides it; raises ConfigError."""
    values = with_preset(options, PRESETS)
    inner = values.get("expand", 2) * values["dim"]
    if "num_heads" not in values:
        if inner % HEAD_DIM:
            raise ConfigError(
                f"the {inner} channels of a mixer are no multiple of {HEAD_DIM}; give --heads, too"
            )
        values["num_heads"] = inner // HEAD_DIM
    return read_shape(values)


def _lower(length: int, device: torch.device, *, reverse: bool) -> torch.Tensor:
    """(length, length) bool: which positions s a position t has read, itself included."""
    place = torch.arange(length, device=device)
    return place[:, None] <= place if reverse else place[:, None] >= place


def ssd_matrix(
    x: torch.Tensor,
    dt: torch.Tensor,
    decay: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    *,
    reverse: bool = False,
) -> torch.Tensor:
    """Computes the state space as one product: y_t = sum over s of M_ts dt_s x_s.

    M_ts = exp(a_t - a_s) C_t . B_s for s <= t, with a the running sum of dt A. The sum is a product
    with a triangle of ones: what scans along a row, TensorRT runs as a loop.

    Args:
        x: (B, L, heads, head_dim).
        dt: (B, L, heads), above 0.
        decay: (heads,): A, below 0.
        b: (B, L, state).
        c: (B, L, state).
        reverse: Whether positions read from the end.

    Returns:
        (B, L, heads, head_dim), without D x.
    """
    read = _lower(x.shape[1], x.device, reverse=reverse)
    steps = (dt * decay).transpose(1, 2)  # (B, heads, L)
    run = steps @ read.to(steps.dtype).transpose(0, 1)
    log = run[:, :, :, None] - run[:, :, None, :]
    kept = torch.exp(torch.where(read, log, torch.full_like(log, NEVER)))
    mixed = kept * (c @ b.transpose(1, 2))[:, None]
    return (mixed @ (x * dt[..., None]).transpose(1, 2)).transpose(1, 2)


def ssd_chunked(
    x: torch.Tensor,
    dt: torch.Tensor,
    decay: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    *,
    chunk: int = CHUNK,
) -> torch.Tensor:
    """Computes the state space by chunks, in time linear in L; arguments as `ssd_matrix` has them.

    The last chunk may be shorter.
    """
    length = x.shape[1]
    if length <= chunk:
        return ssd_matrix(x, dt, decay, b, c)
    pad = -length % chunk
    if pad:  # a dt of 0 adds nothing to a state
        x, dt = F.pad(x, (0, 0, 0, 0, 0, pad)), F.pad(dt, (0, 0, 0, pad))
        b, c = F.pad(b, (0, 0, 0, pad)), F.pad(c, (0, 0, 0, pad))
    count = x.shape[1] // chunk
    parts = [part.unflatten(1, (count, chunk)) for part in (x, dt, b, c)]
    flat = [part.flatten(0, 1) for part in parts]
    own = ssd_matrix(flat[0], flat[1], decay, flat[2], flat[3]).unflatten(0, (-1, count))
    x, dt, b, c = parts
    run = torch.cumsum(dt * decay, dim=2)  # (B, chunks, chunk, heads)
    weighted = x * (dt * torch.exp(run[:, :, -1:] - run))[..., None]
    made = torch.einsum("bnlhp,bnls->bnhps", weighted, b)
    faded = torch.exp(run[:, :, -1])[..., None, None]
    state, before = torch.zeros_like(made[:, 0]), []
    for index in range(count):
        before.append(state)
        state = faded[:, index] * state + made[:, index]
    passed = torch.einsum("bnhps,bnls->bnlhp", torch.stack(before, dim=1), c)
    y = own + passed * torch.exp(run)[..., None]
    return y.flatten(1, 2)[:, :length]


class GatedNorm(nn.Module):
    """RMS norm of gated values."""

    def __init__(self, dim: int, eps: float = NORM_EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """(…, dim) and a gate (…, dim) to (…, dim)."""
        x = x * F.silu(gate)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Mixer(nn.Module):
    """One direction of a layer; parameters are named and laid out as in `mamba_ssm.Mamba2`."""

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__()
        self.config = config
        inner, state, heads = config.inner, config.state_size, config.num_heads
        # Rows: gate, x, B, C, dt.
        self.in_proj = nn.Linear(config.dim, 2 * inner + 2 * state + heads, bias=False)
        width = inner + 2 * state
        self.conv1d = nn.Conv1d(width, width, KERNEL, groups=width, padding=KERNEL - 1)
        low, high = (math.log(step) for step in STEP_RANGE)
        step = torch.exp(low + (high - low) * torch.rand(heads))
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # softplus of it: step
        self.A_log = nn.Parameter(torch.log(torch.empty(heads).uniform_(*DECAY_RANGE)))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = GatedNorm(inner)
        self.out_proj = nn.Linear(inner, config.dim, bias=False)

    def forward(
        self, x: torch.Tensor, *, reverse: bool = False, matrix: bool = False
    ) -> torch.Tensor:
        """(B, L, dim) to (B, L, dim).

        Args:
            x: Normalised input.
            reverse: Whether positions read from the end.
            matrix: Whether to compute one product, without flips, as export traces it.
        """
        if reverse and not matrix:
            return self.forward(x.flip(1)).flip(1)
        config = self.config
        inner, state, heads = config.inner, config.state_size, config.num_heads
        gate, mixed, dt = self.in_proj(x).split([inner, inner + 2 * state, heads], dim=-1)
        mixed = F.silu(self._convolve(mixed, reverse=reverse, matrix=matrix))
        value, b, c = mixed.split([inner, state, state], dim=-1)
        dt = F.softplus(dt + self.dt_bias)
        decay = -torch.exp(self.A_log)
        value = value.unflatten(-1, (heads, inner // heads))
        if matrix:
            y = ssd_matrix(value, dt, decay, b, c, reverse=reverse)
        else:
            y = ssd_chunked(value, dt, decay, b, c)
        y = (y + self.D[:, None] * value).flatten(2)
        return self.out_proj(self.norm(y, gate))

    def _convolve(self, x: torch.Tensor, *, reverse: bool, matrix: bool) -> torch.Tensor:
        """Each channel's weighted sum over the KERNEL positions read last: (B, L, width)."""
        if not matrix:
            return self.conv1d(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        # As shifted rows: a convolution of one row per channel suits no matrix unit.
        before, length = KERNEL - 1, x.shape[1]
        padded = F.pad(x, (0, 0, 0, before) if reverse else (0, 0, before, 0))
        weight = self.conv1d.weight[:, 0]
        assert self.conv1d.bias is not None
        total = self.conv1d.bias
        for tap in range(KERNEL):
            first = before - tap if reverse else tap
            total = total + padded[:, first : first + length] * weight[:, tap]
        return total


class Mamba2Layer(nn.Module):
    """Norm, a mixer in each direction, residual; conditioned on a vector."""

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__()
        self.conditioning = config.conditioning
        self.norm = RMSNorm(config.dim)
        self.mixer = Mixer(config)
        self.mixer_reverse = Mixer(config)
        parts = {"adaln": 3, "film": 2, "add": 1}[config.conditioning]
        self.modulation = nn.Linear(config.dim, parts * config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: torch.Tensor, condition: torch.Tensor, *, matrix: bool = False
    ) -> torch.Tensor:
        """(B, L, dim) and a condition (B, dim) to (B, L, dim)."""
        parts = self.modulation(condition)[:, None].split(x.shape[-1], dim=-1)
        if self.conditioning == "add":
            h = self.norm(x + parts[0])
        else:
            h = self.norm(x) * (1.0 + parts[0]) + parts[1]
        branch = self.mixer(h, matrix=matrix) + self.mixer_reverse(h, reverse=True, matrix=matrix)
        if self.conditioning == "adaln":
            branch = branch * parts[2]
        return x + self.dropout(branch)


class Mamba2Trunk(nn.Module):
    """The layers, and a final norm."""

    def __init__(self, config: Mamba2Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Mamba2Layer(config) for _ in range(config.num_layers))
        self.norm_f = RMSNorm(config.dim)
        self.recompute = False
        """Whether training keeps only what enters each layer, and computes the rest twice."""
        residual = INIT_STD / math.sqrt(2 * config.num_layers)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                std = residual if name.endswith("out_proj") else INIT_STD
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
                if name.endswith("modulation"):
                    nn.init.zeros_(module.weight)

    def forward(
        self, x: torch.Tensor, condition: torch.Tensor, *, matrix: bool = False
    ) -> torch.Tensor:
        """(B, L, dim) and a condition (B, dim) to (B, L, dim)."""
        for layer in self.layers:
            if self.recompute and self.training:
                x = checkpoint(layer, x, condition, use_reentrant=False)
            else:
                x = layer(x, condition, matrix=matrix)
        return self.norm_f(x)
