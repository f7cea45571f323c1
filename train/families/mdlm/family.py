"""Masked diffusion (MDLM) and block diffusion (BD3-LM): one denoiser, any mix of block sizes.

SUBS parameterisation: the mask token is never predicted, unmasked tokens carry over, so only
masked positions are scored, each weighing sigma'(t) / (exp(sigma(t)) - 1). With a block size below
the sequence length, the input is [x_t | x_0] and every block has its own t; with the whole canvas
it is x_t alone. Position 0 is given: never masked, never scored.

Source: MDLM (arXiv 2406.07524), equation 10; BD3-LM (arXiv 2503.09573), section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from ....runtime.errors import ConfigError
from ....runtime.noise.schedule import make_schedule, schedule_from_json, schedule_to_json
from ...nn.masks import block_diffusion_mask
from ...nn.transformer import cross_entropy, make_backbone
from ..base import Batch, ExportGraph, Family, LossOutput
from ..graphs import denoise_graph
from ..noise import MASKINGS, Noise, draw_noise
from ..options import (
    check_options,
    common_config,
    draw_size,
    forbidden_ids,
    parse_block_sizes,
    split_weights,
)

OWN_OPTIONS = (
    "block_sizes",
    "noise_schedule",
    "t_min",
    "t_max",
    "masking",
    "time_conditioning",
    "logit_shift",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Settings of the loss; the `objective` part of config.json."""

    t_min: float = 0.0
    """Smallest t in training; above 0 the loss is no bound any more, but varies less."""
    t_max: float = 1.0
    """Largest t in training."""
    masking: str = "independent"
    """How masks are drawn in training; `count` has less variance (see `noise`)."""
    block_weights: Sequence[float] = ()
    """How often each trained block size is drawn, relative to the others; empty = evenly."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.t_min < self.t_max <= 1.0:
            raise ConfigError(
                f"--t-min {self.t_min} must be below --t-max {self.t_max}, both in [0, 1]"
            )
        if self.masking not in MASKINGS:
            raise ConfigError(f"--masking must be {' or '.join(MASKINGS)}, not {self.masking!r}")


class Mdlm(Family):
    """The family `mdlm`."""

    name = "mdlm"
    logit_shift = 0

    def make_config(self, options: Mapping[str, Any]) -> dict[str, Any]:
        given = check_options(self.name, options, OWN_OPTIONS, needs_mask=self.has_mask)
        extra = {"time_conditioning": given.get("time_conditioning", False), "causal": False}
        config = common_config(self.name, given, extra)
        words, weights = split_weights(given.get("block_sizes", "full"))
        sizes = parse_block_sizes(words, given["context"])
        schedule = make_schedule(given.get("noise_schedule", "loglinear"))
        chosen = {name: given[name] for name in ("t_min", "t_max", "masking") if name in given}
        return {
            **config,
            "noise_schedule": schedule_to_json(schedule),
            "block_sizes": list(sizes),
            "logit_shift": given.get("logit_shift", 0),
            "objective": asdict(Objective(**chosen, block_weights=weights)),
        }

    def make_model(self, config: Mapping[str, Any]) -> nn.Module:
        return make_backbone(config, causal=False)

    def loss(
        self,
        model: nn.Module,
        batch: Batch,
        generator: torch.Generator,
        config: Mapping[str, Any],
        *,
        shard: tuple[int, int] = (0, 1),
    ) -> LossOutput:
        ids, sizes, objective = batch.ids, config["block_sizes"], Objective(**config["objective"])
        block_size = draw_size(sizes, objective.block_weights, generator)
        noise = self._noise(ids, block_size, objective, generator, config, shard)
        nats, _ = self._masked_nats(model, ids, noise, config)
        num_tokens = ids.shape[0] * (ids.shape[1] - 1)
        return LossOutput(loss=nats.sum() / num_tokens, num_tokens=num_tokens)

    @torch.no_grad()
    def eval_loss(
        self, model: nn.Module, batch: Batch, config: Mapping[str, Any], *, seed: int
    ) -> dict[str, torch.Tensor]:
        """Draws t from its whole range, also where training clips it."""
        ids, objective = batch.ids, Objective(masking="count")
        figures: dict[str, torch.Tensor] = {}
        for block_size in config["block_sizes"]:
            generator = torch.Generator().manual_seed(seed)
            noise = self._noise(ids, block_size, objective, generator, config, (0, 1))
            nats, rows = self._masked_nats(model, ids, noise, config)
            sums = torch.zeros(ids.shape[0], dtype=torch.float64)
            sums.index_add_(0, (rows // ids.shape[1]).cpu(), nats.double().cpu())
            name = "full" if block_size == config["model"]["context"] else str(block_size)
            figures[name] = sums
        return figures

    def graphs(self, model: nn.Module, config: Mapping[str, Any]) -> Sequence[ExportGraph]:
        return (denoise_graph(model, config),)

    def _noise(
        self,
        ids: torch.Tensor,
        block_size: int,
        objective: Objective,
        generator: torch.Generator,
        config: Mapping[str, Any],
        shard: tuple[int, int],
    ) -> Noise:
        """Draws noise for all shards and keeps this one's rows, on the ids' device."""
        index, count = shard
        batch, length = ids.shape
        if length % block_size:
            raise ConfigError(f"sequences of {length} tokens are no multiple of block {block_size}")
        schedule = schedule_from_json(config["noise_schedule"])
        noise = draw_noise(
            (batch * count, length),
            block_size,
            schedule,
            generator,
            t_range=(objective.t_min, objective.t_max),
            masking=objective.masking,
        )
        return noise.rows(index * batch, (index + 1) * batch, ids.device)

    def _masked_nats(
        self, model: nn.Module, ids: torch.Tensor, noise: Noise, config: Mapping[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted cross-entropy of every masked position.

        Returns:
            Nats (N,) float32, and the positions' indices (N,) in the flattened (B, L) grid.
        """
        length = ids.shape[1]
        shift = config.get("logit_shift", 0)
        noisy = ids.masked_fill(noise.masked, config["mask_token_id"])
        positions = torch.arange(length, device=ids.device)
        time = noise.move_chance.repeat_interleave(noise.block_size, dim=1)
        visible = None
        if noise.block_size < length:
            noisy = torch.cat([noisy, ids], dim=1)
            positions = torch.cat([positions, positions])
            time = torch.cat([time, torch.zeros_like(time)], dim=1)
            visible = block_diffusion_mask(length, noise.block_size, ids.device)
        rows = noise.masked.flatten().nonzero().squeeze(1)
        if shift:
            speaking = _rows_before(rows, length, noise.block_size, noisy.shape[1])
            logits = model(noisy, positions, visible, rows=speaking, time=time)
        else:
            logits = model(noisy, positions, visible, rows=rows, num_outputs=length, time=time)
        nats = cross_entropy(logits, ids.flatten()[rows], forbidden_ids(config))
        weight = noise.weight.repeat_interleave(noise.block_size, dim=1).flatten()[rows]
        return nats * weight, rows


def _rows_before(rows: torch.Tensor, length: int, block: int, width: int) -> torch.Tensor:
    """The rows that speak for positions, where each speaks for the next one.

    The row before a block is that of the clean text, as in decoding; the others are noisy.

    Args:
        rows: Indices (N,) of positions in the flattened (B, length) grid; none is a text's first.
        width: Positions of the input: of the noisy text, and behind it perhaps of the clean one.

    Returns:
        Indices (N,) into the flattened (B, width) grid.
    """
    text, position = rows // length, rows % length
    clean = (position % block == 0) & (width > length)
    return text * width + position - 1 + torch.where(clean, length, 0)
