"""The causal baseline: the same backbone, next-token cross-entropy, exact likelihood.

Position i's logits predict token i + 1 (`logit_shift` 1); tokens 1 to L - 1 are scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ...nn.masks import causal_mask
from ...nn.transformer import cross_entropy, make_backbone
from ..base import Batch, ExportGraph, Family, LossOutput
from ..graphs import causal_graph
from ..options import check_options, common_config, forbidden_ids


class Ar(Family):
    """The family `ar`."""

    name = "ar"
    logit_shift = 1
    has_mask = False

    def make_config(self, options: Mapping[str, Any]) -> dict[str, Any]:
        given = check_options(self.name, options, ())
        return {
            **common_config(self.name, given, {"causal": True}),
            "noise_schedule": {},
            "block_sizes": [1],
            "objective": {},
        }

    def make_model(self, config: Mapping[str, Any]) -> nn.Module:
        return make_backbone(config, causal=True)

    def loss(
        self,
        model: nn.Module,
        batch: Batch,
        generator: torch.Generator,
        config: Mapping[str, Any],
        *,
        shard: tuple[int, int] = (0, 1),
    ) -> LossOutput:
        del generator, shard
        nats = self._nats(model, batch.ids, config)
        return LossOutput(loss=nats.mean(), num_tokens=nats.numel())

    @torch.no_grad()
    def eval_loss(
        self, model: nn.Module, batch: Batch, config: Mapping[str, Any], *, seed: int
    ) -> dict[str, torch.Tensor]:
        del seed
        return {"ar": self._nats(model, batch.ids, config).double().sum(dim=1).cpu()}

    def graphs(self, model: nn.Module, config: Mapping[str, Any]) -> Sequence[ExportGraph]:
        return (causal_graph(model, config),)

    def _nats(self, model: nn.Module, ids: torch.Tensor, config: Mapping[str, Any]) -> torch.Tensor:
        length = ids.shape[1] - 1
        positions = torch.arange(length, device=ids.device)
        logits = model(ids[:, :-1], positions, causal_mask(length, ids.device))
        targets = ids[:, 1:]
        nats = cross_entropy(logits.flatten(0, 1), targets.flatten(), forbidden_ids(config))
        return nats.view(targets.shape)
