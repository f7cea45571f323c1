"""The toy family's training side: diffusion on latents, given the text before them.

A latent is a token's code, a fixed vector of unit variance. Noise at level t in [0, 1] mixes it
with a Gaussian: z = cos(pi t / 2) x + sin(pi t / 2) e. The model gives the logits of the clean
tokens; their mean code is what it takes for the clean latents. Its figure is the bound of one
step: the cross-entropy at level 1, where z tells nothing, so that tokens are independent given
the source.

The source is the tail of the prompt, or with `source_given` a condition that a request brings.

In training a random number of tokens at the source's begin is hidden (EOS in their place), all of
them as well: so the model is unconditional, too, which guidance needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from dlm_edge.train.families.base import (
    Batch,
    ExportGraph,
    Family,
    GraphTensor,
    LossOutput,
)
from dlm_edge.train.families.options import check_options, common_config
from dlm_edge.train.families.shapes import Shape
from dlm_edge.train.nn.config import ModelConfig
from dlm_edge.train.nn.layers import TimeEmbedding, inverse_frequencies, training_rotation
from dlm_edge.train.nn.score_net import plain_attention
from dlm_edge.train.nn.transformer import Attend, Trunk, fused_attention, init_weights
from torch import nn

SOURCE = 4
"""Tokens of the source."""
TEXTS = 2
"""Batch of the graphs: with the source and without, for guidance."""


class ToyModel(nn.Module):
    """Logits of clean tokens from noisy latents, their level and the source."""

    codes: torch.Tensor
    inv_freq: torch.Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.source_place = nn.Embedding(SOURCE, dim)
        self.source_in = nn.Linear(dim, dim)
        self.source_out = nn.Linear(dim, dim)
        self.place = nn.Embedding(config.context - 1, dim)
        self.read = nn.Linear(dim, dim)
        self.time = TimeEmbedding(dim)
        self.trunk = Trunk(config, dim, condition_norm=True)
        self.head = nn.Linear(dim, config.vocab_size)
        codes = F.normalize(torch.randn(config.vocab_size, dim), dim=-1) * math.sqrt(dim)
        self.register_buffer("codes", codes)
        self.register_buffer("inv_freq", inverse_frequencies(config.head_dim), persistent=False)
        init_weights(self, config.num_layers)

    def encode(self, source: torch.Tensor) -> torch.Tensor:
        """Source ids (B, S) to memory (B, dim)."""
        places = torch.arange(source.shape[1], device=source.device)
        x = F.embedding(source, self.codes) + self.source_place(places)
        return self.source_out(F.silu(self.source_in(x)).mean(dim=1))

    def denoise(
        self,
        latents: torch.Tensor,
        level: torch.Tensor,
        memory: torch.Tensor,
        attend: Attend = fused_attention,
    ) -> torch.Tensor:
        """Latents (B, rows, dim), level (B or 1,) and memory (B, dim) to logits (B, rows, V)."""
        places = torch.arange(latents.shape[1], device=latents.device)
        x = self.read(latents) + self.place(places) + memory[:, None]
        angles = training_rotation(places, self.inv_freq)
        condition = F.silu(self.time(level) + memory)
        return self.head(self.trunk(x, angles, condition=condition, attend=attend))

    def forward(
        self, latents: torch.Tensor, level: torch.Tensor, source: torch.Tensor
    ) -> torch.Tensor:
        """Arguments as `denoise` and `encode` take them; gives logits (B, rows, V)."""
        return self.denoise(latents, level, self.encode(source))


class Encode(nn.Module):
    """The exported graph `encode`."""

    def __init__(self, model: ToyModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, source: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.model.encode(source),)


class Denoise(nn.Module):
    """The exported graph `denoise`: logits, and the clean latents that they stand for."""

    def __init__(self, model: ToyModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, latents: torch.Tensor, level: torch.Tensor, memory: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.model.denoise(latents, level, memory, plain_attention)
        return logits, torch.softmax(logits, dim=-1) @ self.model.codes


class Toy(Family):
    """What the desktop's table lists."""

    name = "toy"
    logit_shift = 0
    has_mask = False

    def make_config(self, options: Mapping[str, Any]) -> dict[str, Any]:
        given = check_options(self.name, options, ("source_given",))
        return {
            **common_config(self.name, given, {"causal": False}),
            "noise_schedule": {},
            "block_sizes": [given["context"] - 1],
            "objective": {"source_given": given.get("source_given", False)},
        }

    def make_model(self, config: Mapping[str, Any]) -> nn.Module:
        return ToyModel(ModelConfig.from_json(config))

    def fields(self, config: Mapping[str, Any]) -> Mapping[str, int]:
        return {"source": SOURCE}

    def loss(
        self,
        model: nn.Module,
        batch: Batch,
        generator: torch.Generator,
        config: Mapping[str, Any],
        *,
        shard: tuple[int, int] = (0, 1),
    ) -> LossOutput:
        index, count = shard
        own = slice(index * len(batch), (index + 1) * len(batch))
        total = count * len(batch)
        level = torch.rand(total, generator=generator).sqrt()[own].to(batch.ids.device)
        hidden = torch.randint(SOURCE + 1, (total, 1), generator=generator)[own]
        shape = (total, batch.ids.shape[1] - 1, config["model"]["dim"])
        noise = torch.randn(shape, generator=generator)[own].to(batch.ids.device)
        source = hide(last_source(batch), hidden.to(batch.ids.device), config["eos_token_id"])
        nats = _nats(model, batch.ids[:, 1:], level, noise, source)
        return LossOutput(loss=nats.mean(), num_tokens=nats.numel())

    @torch.no_grad()
    def eval_loss(
        self, model: nn.Module, batch: Batch, config: Mapping[str, Any], *, seed: int
    ) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shape = (len(batch), batch.ids.shape[1] - 1, config["model"]["dim"])
        noise = torch.randn(shape, generator=generator).to(batch.ids.device)
        level = torch.ones(len(batch), device=batch.ids.device)
        nats = _nats(model, batch.ids[:, 1:], level, noise, last_source(batch))
        return {"toy": nats.double().sum(dim=1).cpu()}

    def graphs(self, model: nn.Module, config: Mapping[str, Any]) -> Sequence[ExportGraph]:
        assert isinstance(model, ToyModel)
        dim, vocab = config["model"]["dim"], config["vocab_size"]
        rows = config["block_sizes"][0]
        source_lives = "request" if config["objective"]["source_given"] else "run"

        def tensor(name, dtype, shape, role, lifetime="run"):
            return GraphTensor(name=name, dtype=dtype, shape=shape, role=role, lifetime=lifetime)

        def sources(ids, level, rng, block):
            del level, block
            return ids, {"source": rng.integers(0, vocab, (TEXTS, SOURCE)).astype(np.int32)}

        def noisy(ids, level, rng, block):
            del block
            codes = model.codes.numpy()[ids]
            noise = rng.standard_normal(codes.shape)
            mixed = math.cos(math.pi * level / 2) * codes + math.sin(math.pi * level / 2) * noise
            memory = rng.standard_normal((TEXTS, dim)).astype(np.float32)
            return mixed.astype(np.float32), {"level": level, "memory": memory}

        encoded = Shape(dims={"batch": TEXTS, "source": SOURCE}, purpose="encode")
        canvas = Shape(dims={"batch": TEXTS, "rows": rows}, purpose="denoise", block=rows)
        return (
            ExportGraph(
                name="encode",
                module=Encode(model).eval(),
                inputs=(tensor("source", "int32", ("batch", "source"), "source", source_lives),),
                outputs=(tensor("encoded", "float32", ("batch", dim), "memory"),),
                shapes=lambda blocks, contexts: (encoded,),
                corrupt=sources,
            ),
            ExportGraph(
                name="denoise",
                module=Denoise(model).eval(),
                inputs=(
                    tensor("latents", "float32", ("batch", "rows", dim), "canvas", "step"),
                    tensor("level", "float32", (1,), "level", "step"),
                    tensor("memory", "float32", ("batch", dim), "memory", "request"),
                ),
                outputs=(
                    tensor("logits", "float32", ("batch", "rows", vocab), "logits"),
                    tensor("clean", "float32", ("batch", "rows", dim), "clean"),
                ),
                shapes=lambda blocks, contexts: (canvas,),
                corrupt=noisy,
            ),
        )


def last_source(batch: Batch) -> torch.Tensor:
    """Gives the tokens (B, S) before the canvas, whose first is given."""
    return torch.cat([batch.fields["source"], batch.ids[:, :1]], dim=1)[:, 1:]


def hide(source: torch.Tensor, count: torch.Tensor, eos: int) -> torch.Tensor:
    """Puts EOS in place of the first `count` (B, 1) tokens."""
    place = torch.arange(source.shape[1], device=source.device)
    return source.masked_fill(place < count, eos)


def _nats(
    model: nn.Module,
    ids: torch.Tensor,
    level: torch.Tensor,
    noise: torch.Tensor,
    source: torch.Tensor,
) -> torch.Tensor:
    """Cross-entropy (B, rows) of clean ids at noise levels (B,)."""
    inner = getattr(model, "module", model)
    codes = F.embedding(ids, inner.codes)
    angle = level[:, None, None] * (math.pi / 2)
    logits = model(angle.cos() * codes + angle.sin() * noise, level, source)
    return F.cross_entropy(logits.transpose(1, 2).float(), ids.long(), reduction="none")
