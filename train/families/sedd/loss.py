"""Noise and score entropy of `sedd` in training: what is drawn, and what it costs per position.

Which token noise puts where is drawn here; what a score costs is in
`runtime/noise/score_entropy.py`, which the device's bound uses, too.

Source: SEDD (arXiv 2310.16834), algorithm 1; low-discrepancy times: MDLM (arXiv 2406.07524).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ....runtime.errors import ConfigError
from ....runtime.noise.schedule import schedule_from_json
from ....runtime.noise.score_entropy import (
    absorb_entropy,
    move_odds,
    prior_nats,
    spread_sigma,
    uniform_entropy,
)
from ..base import Corrupt
from ..noise import draw_noise, draw_times
from ..options import forbidden_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Noisy:
    """One draw of noise for a batch."""

    ids: torch.Tensor
    """(B, L): x_t."""
    sigma: torch.Tensor
    """(B,) float32."""
    weight: torch.Tensor
    """(B,) float32: what a position's score entropy weighs, 1 for sigma drawn evenly."""


def cut(ids: torch.Tensor, length: int) -> torch.Tensor:
    """Cuts sequences (B, L) into canvases (B L / length, length); raises ConfigError."""
    if ids.shape[1] % length:
        raise ConfigError(f"sequences of {ids.shape[1]} tokens are no multiple of length {length}")
    return ids.reshape(-1, length)


def states_of(config: Mapping[str, Any]) -> torch.Tensor:
    """Ids (K,) int64 that text consists of: all but mask and padding."""
    kept = torch.ones(config["vocab_size"], dtype=torch.bool)
    kept[list(forbidden_ids(config))] = False
    return kept.nonzero().flatten()


def draw(
    ids: torch.Tensor,
    config: Mapping[str, Any],
    masking: str,
    generator: torch.Generator,
    shard: tuple[int, int],
) -> Noisy:
    """Draws noise for all shards and keeps this one's rows.

    Args:
        shard: (index, count); noise is drawn for `count * B` canvases.
    """
    index, count = shard
    batch, length = ids.shape
    schedule = schedule_from_json(config["noise_schedule"])
    total = (batch * count, length)
    own = slice(index * batch, (index + 1) * batch)
    if config["model"]["graph"] == "absorb":
        noise = draw_noise(total, length, schedule, generator, masking=masking)
        sigma = schedule.sigma(noise.time[own, 0])
        xt = ids.masked_fill(noise.masked[own].to(ids.device), config["mask_token_id"])
        # A position's weight there is that of a cross-entropy: sigma'(t) / (exp(sigma) - 1).
        weight = noise.weight[own, 0].double() * move_odds(sigma)
    else:
        # The bound does not depend on how sigma is drawn, so it is drawn where it matters.
        level = draw_times(total[0], 1, (0.0, 1.0), generator)[own, 0]
        sigma, weight = spread_sigma(level, float(schedule.sigma(1.0)))
        moved = torch.rand(total, generator=generator, dtype=torch.float64)[own]
        states = states_of(config)
        drawn = states[torch.randint(len(states), total, generator=generator)[own]]
        changes = moved < -torch.expm1(-sigma)[:, None]
        changes[:, 0] = False
        xt = torch.where(changes.to(ids.device), drawn.to(ids), ids)
    return Noisy(ids=xt, sigma=sigma.float().to(ids.device), weight=weight.float().to(ids.device))


def position_nats(
    model: nn.Module, x0: torch.Tensor, noisy: Noisy, config: Mapping[str, Any]
) -> torch.Tensor:
    """Weighted score entropy (B, L) of every position, 0 where there is none."""
    states = states_of(config).to(x0.device)
    if config["model"]["graph"] == "absorb":
        rows = (noisy.ids == config["mask_token_id"]).flatten().nonzero().flatten()
        log_score = model(noisy.ids, noisy.sigma, rows)
        row = rows // x0.shape[1]
        entropy = absorbed(log_score, x0.flatten()[rows], noisy.sigma[row], states)
        nats = entropy.new_zeros(x0.numel()).index_put((rows,), entropy * noisy.weight[row])
        return nats.view(x0.shape)
    log_score = model(noisy.ids, noisy.sigma)
    entropy = replaced(log_score, noisy.ids, x0, noisy.sigma[:, None], states)
    scored = torch.arange(x0.shape[1], device=x0.device) > 0
    return entropy * noisy.weight[:, None] * scored


def absorbed(
    log_score: torch.Tensor, x0: torch.Tensor, sigma: torch.Tensor, states: torch.Tensor
) -> torch.Tensor:
    """Score entropy (N,) of masked positions: log_score (N, V), clean tokens and sigma (N,)."""
    total = log_score.index_select(-1, states).exp().sum(dim=-1)
    at_x0 = log_score.gather(-1, x0.long()[:, None])[:, 0]
    return absorb_entropy(total, at_x0, sigma)


def replaced(
    log_score: torch.Tensor,
    xt: torch.Tensor,
    x0: torch.Tensor,
    sigma: torch.Tensor,
    states: torch.Tensor,
) -> torch.Tensor:
    """Score entropy (…) under the uniform graph.

    Args:
        log_score: (…, V), 0 at the own token.
        sigma: Broadcasts to (…).
        states: Ids (K,) of the graph's states.
    """
    kept = log_score.index_select(-1, states)
    own = xt[..., None] == states
    total = kept.masked_fill(own, float("-inf")).exp().sum(dim=-1)
    at_x0 = log_score.gather(-1, x0.long()[..., None])[..., 0]
    changed = (xt != x0).to(total.dtype)
    return uniform_entropy(total, kept.sum(dim=-1), at_x0, changed, sigma, len(states))


def end_nats(config: Mapping[str, Any]) -> float:
    """Gives the bound's prior term per token: KL from the noisiest text to what decoding starts at.

    None under the absorbing graph, whose draws of `masking` count reach the whole range of masks.
    """
    if config["model"]["graph"] == "absorb":
        return 0.0
    last = float(schedule_from_json(config["noise_schedule"]).sigma(1.0))
    return prior_nats(last, len(states_of(config)))


def canvas_noise(config: Mapping[str, Any]) -> Corrupt:
    """Gives the family's noise on one canvas: at level t, with sigma(t) as the input `sigma`."""
    schedule = schedule_from_json(config["noise_schedule"])
    states = states_of(config).numpy().astype(np.int32)
    mask = config["mask_token_id"] if config["model"]["graph"] == "absorb" else None

    def corrupt(
        clean: np.ndarray, level: float, rng: np.random.Generator, block: int | None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        del block
        moved = rng.random(len(clean)) < schedule.move_chance(level)
        drawn = states[rng.integers(len(states), size=len(clean))]
        noisy = np.where(moved, drawn if mask is None else mask, clean).astype(clean.dtype)
        return noisy, {"sigma": schedule.sigma(level)}

    return corrupt
