"""DIMBA: diffusion on token embeddings by a bidirectional state-space model, without a cache.

Latents are learned embeddings. Where the text is unknown they are noised by the schedule, where it
is given they stay clean, and the loss is on the unknown alone: min-SNR weighted squared error of
the estimate, and the cross-entropy of rounding it to the token, without which all embeddings would
become one. What is given is a text's begin, or all but a gap in its middle; position 0 always.

There is no likelihood: the figures are cross-entropies of rounding at fixed noise levels.

Source: DIMBA (Mamba-2 as a denoiser of embeddings); rounding: Diffusion-LM (arXiv 2205.14217);
self-conditioning: arXiv 2208.04202; min-SNR: arXiv 2303.09556; guidance: arXiv 2207.12598.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ....runtime.errors import ConfigError
from ....runtime.noise.latent import LatentSchedule
from ...config import option_of
from ...nn.mamba2 import resolve_shape
from ..base import Batch, Corrupt, ExportGraph, Family, GraphTensor, LossOutput
from ..noise import draw_times
from ..options import (
    check_options,
    draw_size,
    forbidden_ids,
    parse_block_sizes,
    shared_config,
    split_weights,
)
from ..shapes import Shape, canvas_shapes
from .model import Denoiser, DenoiseStep, DimbaConfig, EmbedStep, GuidedStep

SHAPE = ("size", "dim", "num_layers", "num_heads", "dropout", "state_size", "expand")
"""Options of the backbone, but for how it is conditioned."""
OWN_OPTIONS = (
    "block_sizes",
    "noise_schedule",
    "state_size",
    "expand",
    "conditioning",
    "latent_dim",
    "prediction",
    "noise_steps",
    "zero_snr",
    "min_snr",
    "rounding_weight",
    "self_conditioning",
    "condition_dropout",
    "prompt_encoder",
)
TRANSFORMER = ("num_kv_heads", "head_dim", "hidden_dim", "tie_embeddings", "rope_theta", "norm_eps")
"""Options of a shape that this backbone has not."""
LATENT_SHARE = 8
"""Default width of an embedding: so many times less than the residual stream's."""
EVAL_LEVELS = (0.3, 0.5, 0.7, 0.9)
"""Noise angles of the held-out figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Settings of the loss; the `objective` part of config.json."""

    min_snr: float = 5.0
    """Largest weight of the squared error: it is min(signal / noise, this)."""
    rounding_weight: float = 1.0
    """Weight of the cross-entropy of rounding."""
    self_conditioning: float = 0.5
    """Share of sequences that get a first estimate."""
    condition_dropout: float = 0.1
    """Share of sequences whose given latents are hidden, which guidance needs."""
    block_weights: Sequence[float] = ()
    """How often each trained length is drawn, relative to the others; empty: evenly."""

    def __post_init__(self) -> None:
        for name in ("self_conditioning", "condition_dropout"):
            value = getattr(self, name)
            if not 0.0 <= value < 1.0:
                raise ConfigError(f"{option_of(name)} must be in [0, 1), not {value}")
        if not 0.0 < self.min_snr < math.inf:
            raise ConfigError(f"--min-snr must be above 0, not {self.min_snr}")
        if not 0.0 <= self.rounding_weight < math.inf:
            raise ConfigError(f"--rounding-weight must not be negative: {self.rounding_weight}")


class _Draws(NamedTuple):
    """What is random about a batch: of one shard."""

    noise: torch.Tensor
    known: torch.Tensor
    time: torch.Tensor
    """(B,) int64, 1 to T."""
    dropped: torch.Tensor
    conditioned: torch.Tensor


class Dimba(Family):
    """The family `dimba`."""

    name = "dimba"
    logit_shift = 0
    has_likelihood = False

    def make_config(self, options: Mapping[str, Any]) -> dict[str, Any]:
        given = check_options(
            self.name, options, OWN_OPTIONS, needs_mask=self.has_mask, backbones=("mamba2",)
        )
        for name in TRANSFORMER:
            if name in given:
                raise ConfigError(
                    f"--family dimba takes no {option_of(name)}: its backbone is mamba2, which has "
                    "--dim, --layers, --heads, --state-size and --expand"
                )
        shape = resolve_shape({name: given.get(name) for name in (*SHAPE, "conditioning")})
        names = ("self_conditioning", "condition_dropout", "min_snr", "rounding_weight")
        words, weights = split_weights(given.get("block_sizes", "full"))
        lengths = parse_block_sizes(words, given["context"])
        if min(lengths) < 2:
            raise ConfigError("a canvas of dimba must have 2 positions or more: its first is given")
        objective = Objective(
            block_weights=weights, **{name: given[name] for name in names if name in given}
        )
        schedule = LatentSchedule(
            name=given.get("noise_schedule", "cosine"),
            num_steps=given.get("noise_steps", 1000),
            zero_snr=bool(given.get("zero_snr", False)),
        )
        model = DimbaConfig(
            shape=shape,
            vocab_size=given["vocab_size"],
            context=given["context"],
            latent_dim=given.get("latent_dim", max(shape.dim // LATENT_SHARE, 8)),
            prediction=given.get("prediction", "x0"),
            self_conditioning=objective.self_conditioning > 0,
            prompt_encoder=bool(given.get("prompt_encoder", False)),
        )
        return {
            **shared_config(self.name, given, model.to_json()),
            "noise_schedule": schedule.to_json(),
            "block_sizes": list(lengths),
            "objective": asdict(objective),
        }

    def make_model(self, config: Mapping[str, Any]) -> nn.Module:
        return Denoiser(DimbaConfig.from_json(config))

    def loss(
        self,
        model: nn.Module,
        batch: Batch,
        generator: torch.Generator,
        config: Mapping[str, Any],
        *,
        shard: tuple[int, int] = (0, 1),
    ) -> LossOutput:
        """Draws the length per batch from those trained, and cuts ids to it.

        A sequence's loss is the mean over its unknown positions.
        """
        objective = Objective(**config["objective"])
        schedule = LatentSchedule.from_json(config["noise_schedule"])
        length = draw_size(config["block_sizes"], objective.block_weights, generator)
        ids = batch.ids.reshape(-1, length)
        drawn = _draw(ids, config["model"]["latent_dim"], schedule, objective, generator, shard)
        share = torch.from_numpy(schedule.signal())[drawn.time]
        level = torch.from_numpy(schedule.levels())[drawn.time]
        device = ids.device
        known = drawn.known.to(device)
        error, nats = model(
            ids,
            drawn.noise.to(device),
            known,
            level.float().to(device),
            dropped=drawn.dropped.to(device),
            conditioned=drawn.conditioned.to(device),
            forbidden=forbidden_ids(config),
        )
        weight = (share / (1.0 - share)).clamp(max=objective.min_snr).float().to(device)
        cost = weight[:, None] * error + objective.rounding_weight * nats
        unknown = (~known).to(cost.dtype)
        loss = ((cost * unknown).sum(dim=1) / unknown.sum(dim=1)).mean()
        return LossOutput(loss=loss, num_tokens=batch.ids.shape[0] * (batch.ids.shape[1] - 1))

    @torch.no_grad()
    def eval_loss(
        self, model: nn.Module, batch: Batch, config: Mapping[str, Any], *, seed: int
    ) -> dict[str, torch.Tensor]:
        """Gives the cross-entropy of rounding per noise level, without a first estimate."""
        generator = torch.Generator().manual_seed(seed)
        ids, count = batch.ids, len(batch)
        noise = torch.randn((*ids.shape, config["model"]["latent_dim"]), generator=generator)
        known = torch.zeros(ids.shape, dtype=torch.bool, device=ids.device)
        known[:, 0] = True
        none = torch.zeros(count, dtype=torch.bool, device=ids.device)
        figures = {}
        for level in EVAL_LEVELS:
            levels = torch.full((count,), level, device=ids.device)
            _, nats = model(
                ids,
                noise.to(ids.device),
                known,
                levels,
                dropped=none,
                conditioned=none,
                forbidden=forbidden_ids(config),
            )
            figures[f"rounding at noise {level}"] = nats[:, 1:].double().sum(dim=1).cpu()
        return figures

    def graphs(self, model: nn.Module, config: Mapping[str, Any]) -> Sequence[ExportGraph]:
        """Gives `embed`, `denoise` and, where training dropped conditions, `guided`."""
        assert isinstance(model, Denoiser)
        rows = model.table.rows().detach().clone()
        forbidden = forbidden_ids(config)
        shapes = partial(
            canvas_shapes, trained=config["block_sizes"], max_position=model.config.context
        )

        def purposed(purpose: str, blocks: Sequence[int | str], contexts: Sequence[int]):
            found = shapes(blocks, contexts)
            return tuple(
                Shape(dims=shape.dims, purpose=purpose, block=shape.block) for shape in found
            )

        latent = ("batch", "rows", model.config.latent_dim)
        vocab = ("batch", "rows", model.config.vocab_size)

        def tensor(name: str, shape: tuple[int | str, ...], role: str, lifetime: str = "run"):
            return GraphTensor(
                name=name, dtype="float32", shape=shape, role=role, lifetime=lifetime
            )

        def step(name: str) -> ExportGraph:
            inputs = [
                tensor("latents", latent, "canvas"),
                tensor("known", ("batch", "rows"), "known"),
                tensor("level", ("batch",), "level"),
            ]
            if name == "guided":
                inputs.append(tensor("guidance", ("batch",), "guidance"))
            if model.config.self_conditioning:
                inputs.append(tensor("before", latent, "before"))
            made = GuidedStep if name == "guided" else DenoiseStep
            return ExportGraph(
                name=name,
                module=made(model, rows, forbidden).eval(),
                inputs=tuple(inputs),
                outputs=(
                    tensor("logits", vocab, "logits"),
                    tensor("clean", latent, "clean"),
                    tensor("expected", latent, "expected"),
                    tensor("nearest", latent, "nearest"),
                ),
                shapes=partial(purposed, name),
                corrupt=_noise(rows),
            )

        embed = ExportGraph(
            name="embed",
            module=EmbedStep(rows).eval(),
            inputs=(
                GraphTensor(name="ids", dtype="int32", shape=("batch", "rows"), role="canvas"),
            ),
            outputs=(tensor("embedded", latent, "embedded"),),
            shapes=partial(purposed, "embed"),
        )
        guided = config["objective"]["condition_dropout"] > 0
        return (embed, step("denoise"), *([step("guided")] if guided else ()))


def _draw(
    ids: torch.Tensor,
    latent_dim: int,
    schedule: LatentSchedule,
    objective: Objective,
    generator: torch.Generator,
    shard: tuple[int, int],
) -> _Draws:
    """Draws for all shards and keeps this one's rows."""
    index, count = shard
    batch, length = ids.shape
    total, own = batch * count, slice(index * batch, (index + 1) * batch)
    unit = draw_times(total, 1, (0.0, 1.0), generator)[:, 0]
    time = (1 + (unit * schedule.num_steps).long()).clamp(max=schedule.num_steps)
    noise = torch.randn((total, length, latent_dim), generator=generator)
    kind, first, last, dropped, conditioned = torch.rand((5, total), generator=generator)
    # Half of the texts are unknown but for the first token, a quarter have a prompt, the others a
    # gap.
    begin = torch.where(kind < 0.5, 1.0, 1.0 + (first * (length - 1)).floor())
    end = torch.where(kind < 0.75, float(length), begin + 1 + (last * (length - begin)).floor())
    place = torch.arange(length)
    known = (place < begin[:, None]) | (place >= end[:, None])
    return _Draws(
        noise=noise[own],
        known=known[own],
        time=time[own],
        dropped=(dropped < objective.condition_dropout)[own],
        conditioned=(conditioned < objective.self_conditioning)[own],
    )


def _noise(rows: torch.Tensor) -> Corrupt:
    """Gives the family's noise on one canvas: at a noise angle, the first token given."""
    table = rows.numpy()

    def corrupt(
        clean: np.ndarray, level: float, rng: np.random.Generator, block: int | None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        del block
        latents = table[clean]
        angle = math.pi / 2 * level
        noisy = math.cos(angle) * latents + math.sin(angle) * rng.standard_normal(latents.shape)
        known = np.zeros(len(clean), np.float32)
        known[0] = 1.0
        noisy[0] = latents[0]
        extra = {"known": known, "level": level, "before": np.zeros_like(latents), "guidance": 2.0}
        return noisy.astype(np.float32), extra

    return corrupt
