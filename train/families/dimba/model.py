"""The denoiser of `dimba` and its exported graphs.

A token's latent is its embedding, brought to unit variance. The network reads noisy latents where
the text is unknown and clean ones where it is given, the noise level, and (self-conditioning) its
own last estimate; it gives an estimate of the clean latents. The head that rounds an estimate to
tokens is the table of latents itself: the highest logit is the nearest embedding.

Without its condition, the given latents are zero: what training drops and guidance compares with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ....runtime.errors import ConfigError
from ...nn.layers import TimeEmbedding
from ...nn.mamba2 import INIT_STD, Mamba2Config, Mamba2Trunk, read_shape
from ...nn.transformer import nats_of

PREDICTIONS = ("x0", "v")
NEVER = -1e4
"""Logit of tokens that are never rounded to; float16 holds it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DimbaConfig:
    """Shape of the denoiser."""

    shape: Mamba2Config
    vocab_size: int
    context: int
    """Positions of the longest canvas."""
    latent_dim: int
    """Width of an embedding."""
    prediction: str = "x0"
    """What the network gives: `x0` or `v` = alpha e - sigma x0."""
    self_conditioning: bool = True
    """Whether the network reads its last estimate."""
    prompt_encoder: bool = False
    """Whether the given latents' mean goes into the condition, too, through an encoder."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context", "latent_dim"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 2:
                raise ConfigError(f"model {name} must be an integer of 2 or more, not {value!r}")
        if self.prediction not in PREDICTIONS:
            raise ConfigError(
                f"--prediction must be {' or '.join(PREDICTIONS)}, not {self.prediction!r}"
            )

    def to_json(self) -> dict[str, Any]:
        """Gives a flat mapping."""
        names = (
            "vocab_size",
            "context",
            "latent_dim",
            "prediction",
            "self_conditioning",
            "prompt_encoder",
        )
        return {**self.shape.to_json(), **{name: getattr(self, name) for name in names}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DimbaConfig:
        """Reads what `to_json` gave; raises ConfigError on missing or unknown keys."""
        rest = {name: item for name, item in values.items() if name != "backbone"}
        shape = read_shape(values)
        for name in shape.to_json():
            rest.pop(name, None)
        try:
            return cls(shape=shape, **rest)
        except TypeError as error:
            raise ConfigError(f"model config does not fit: {error}") from error


class LatentTable(nn.Module):
    """Embeddings of unit variance, and the head that rounds to them."""

    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, dim)
        nn.init.normal_(self.embed.weight)
        self.log_scale = nn.Parameter(torch.tensor(-0.5 * math.log(dim)))
        self.out_features = vocab_size

    def rows(self) -> torch.Tensor:
        """Gives every token's latent: (V, dim), each row of unit mean square."""
        weight = self.embed.weight
        return weight * torch.rsqrt(weight.square().mean(-1, keepdim=True) + 1e-6)

    def forward(self, estimate: torch.Tensor) -> torch.Tensor:
        """Gives logits (…, V) of an estimate (…, dim)."""
        return estimate @ (self.rows() * self.log_scale.exp()).transpose(0, 1)


class Denoiser(nn.Module):
    """Table, trunk and what is between them."""

    def __init__(self, config: DimbaConfig) -> None:
        super().__init__()
        self.config = config
        latent, dim = config.latent_dim, config.shape.dim
        self.table = LatentTable(config.vocab_size, latent)
        self.read = nn.Linear((2 if config.self_conditioning else 1) * latent + 1, dim)
        self.time = TimeEmbedding(dim)
        self.prompt_in = nn.Linear(latent, dim) if config.prompt_encoder else None
        self.prompt_out = nn.Linear(dim, dim) if config.prompt_encoder else None
        self.trunk = Mamba2Trunk(config.shape)
        self.write = nn.Linear(dim, latent)
        nn.init.normal_(self.write.weight, std=INIT_STD)
        nn.init.zeros_(self.write.bias)

    def denoise(
        self,
        latents: torch.Tensor,
        known: torch.Tensor,
        level: torch.Tensor,
        before: torch.Tensor | None,
        *,
        matrix: bool = False,
    ) -> torch.Tensor:
        """Estimates the clean latents.

        Args:
            latents: (B, L, latent): clean where known (or zero), noisy elsewhere.
            known: (B, L) float, 1 or 0.
            level: (B,) float32 noise angle in [0, 1].
            before: (B, L, latent): the last estimate, zeros for none; None without
                self-conditioning.
            matrix: Whether layers are computed as export traces them.

        Returns:
            (B, L, latent).
        """
        parts = [latents, known[..., None]]
        if before is not None:
            parts.insert(1, before)
        time = self.time(level)
        condition = F.silu(time + self.encode(latents, known))
        x = self.trunk(self.read(torch.cat(parts, dim=-1)), condition, matrix=matrix)
        found = self.write(x)
        if self.config.prediction == "v":
            angle = (level * (math.pi / 2))[:, None, None]
            found = torch.cos(angle) * latents - torch.sin(angle) * found
        return found

    def encode(self, latents: torch.Tensor, known: torch.Tensor) -> torch.Tensor | float:
        """Gives the prompt's part of the condition, of known positions alone: (B, dim)."""
        if self.prompt_in is None or self.prompt_out is None:
            return 0.0
        count = known.sum(dim=1, keepdim=True).clamp(min=1.0)
        mean = (latents * known[..., None]).sum(dim=1) / count
        return self.prompt_out(F.silu(self.prompt_in(mean)))

    def forward(
        self,
        ids: torch.Tensor,
        noise: torch.Tensor,
        known: torch.Tensor,
        level: torch.Tensor,
        *,
        dropped: torch.Tensor,
        conditioned: torch.Tensor,
        forbidden: tuple[int, ...] = (),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Noises, estimates, rounds.

        Args:
            ids: Clean tokens (B, L).
            noise: (B, L, latent) standard normal.
            known: (B, L) bool: positions whose clean latents the network is given.
            level: (B,) float32 noise angle.
            dropped: (B,) bool: sequences whose condition is hidden.
            conditioned: (B,) bool: sequences that get a first estimate of their own.
            forbidden: Tokens that are never rounded to.

        Returns:
            Squared error of the estimate per number, and nats of rounding it to the token, (B, L)
            float32 each.
        """
        clean = F.embedding(ids, self.table.rows())
        angle = (level * (math.pi / 2))[:, None, None]
        noisy = torch.cos(angle) * clean + torch.sin(angle) * noise
        given = clean * (~dropped)[:, None, None]
        latents = torch.where(known[..., None], given, noisy)
        flags = known.to(latents.dtype)
        before = None
        if self.config.self_conditioning:
            before = torch.zeros_like(latents)
            chosen = conditioned.nonzero().flatten()
            if len(chosen):
                with torch.no_grad():
                    first = self.denoise(
                        latents[chosen], flags[chosen], level[chosen], before[chosen]
                    )
                before = before.index_copy(0, chosen, first.to(before.dtype))
        estimate = self.denoise(latents, flags, level, before)
        error = (estimate - clean).float().square().mean(dim=-1)
        nats = nats_of(self.table, estimate.flatten(0, 1), ids.flatten(), forbidden)
        return error, nats.view(ids.shape)


class EmbedStep(nn.Module):
    """The exported graph `embed`: the latents of ids.

    | tensor | shape | dtype | role |
    |---|---|---|---|
    | ids | (batch, rows) | int32 | canvas |
    | embedded | (batch, rows, latent) | float32 | embedded |
    """

    rows: torch.Tensor

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor]:
        """Returns (embedded,); the class has the table."""
        return (F.embedding(ids, self.rows),)


class _Step(nn.Module):
    """What an estimate rounds to, for both exported steps."""

    rows: torch.Tensor
    never: torch.Tensor

    def __init__(self, model: Denoiser, rows: torch.Tensor, forbidden: tuple[int, ...]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("rows", rows)
        self.scale = float(model.table.log_scale.detach().exp())
        never = torch.zeros(len(rows))
        never[list(forbidden)] = NEVER
        self.register_buffer("never", never)

    def rounded(self, clean: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Gives the outputs for an estimate."""
        logits = (clean * self.scale) @ self.rows.transpose(0, 1) + self.never
        expected = torch.softmax(logits, dim=-1) @ self.rows
        nearest = F.embedding(logits.argmax(dim=-1), self.rows)
        return logits, clean, expected, nearest


class DenoiseStep(_Step):
    """The exported graph `denoise`: one estimate, and what it rounds to.

    | tensor | shape | dtype | role |
    |---|---|---|---|
    | latents | (batch, rows, latent) | float32 | canvas |
    | known | (batch, rows) | float32 | known: 1 where the latents are given ones |
    | level | (batch,) | float32 | level: noise angle |
    | before | (batch, rows, latent) | float32 | before: last estimate, with self-conditioning |
    | logits | (batch, rows, vocab) | float32 | logits: of rounding; the highest is the nearest |
    | clean | (batch, rows, latent) | float32 | clean: the estimate |
    | expected | (batch, rows, latent) | float32 | expected: mean latent under the logits |
    | nearest | (batch, rows, latent) | float32 | nearest: latent of the highest logit |
    """

    def forward(
        self,
        latents: torch.Tensor,
        known: torch.Tensor,
        level: torch.Tensor,
        before: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Takes and returns what the class's table lists."""
        return self.rounded(self.model.denoise(latents, known, level, before, matrix=True))


class GuidedStep(_Step):
    """The exported graph `guided`: `denoise` in a batch of two, the second without its condition.

    The estimate is u + guidance (c - u), with the input guidance (batch,) float32 behind `level`.
    """

    def forward(
        self,
        latents: torch.Tensor,
        known: torch.Tensor,
        level: torch.Tensor,
        guidance: torch.Tensor,
        before: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Returns what DenoiseStep's table lists."""
        hidden = latents * (1.0 - known)[..., None]
        both = self.model.denoise(
            torch.cat([latents, hidden]),
            torch.cat([known, known]),
            torch.cat([level, level]),
            None if before is None else torch.cat([before, before]),
            matrix=True,
        )
        batch = latents.shape[0]
        with_it, without = both[:batch], both[batch:]
        return self.rounded(without + guidance[:, None, None] * (with_it - without))
