"""TiDAR: one causal model that also drafts, a block of masks at a time, in the same forward.

The input is [x | masks], both halves at positions 0 to L - 1 (`nn/masks.draft_mask`). The clean
half predicts each next token (position i says token i + 1), the masks their own (position i says
token i) from the text before their block. Every token of the second half is a mask, so both
losses score L - 1 tokens and need no balancing beyond `alpha`:

    loss = (alpha mean CE(clean) + mean CE(masks)) / (1 + alpha)

The clean half never sees a mask: its likelihood is exactly that of a causal pass over the text.

Source: TiDAR (arXiv 2511.08923), section 3.1 and equation 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from ....runtime.errors import ConfigError
from ...nn.masks import draft_mask
from ...nn.transformer import make_backbone
from ..base import Batch, ExportGraph, Family, LossOutput
from ..options import check_options, common_config, draw_size, forbidden_ids, split_weights
from .graphs import draft_graphs

DEFAULT_BLOCK_SIZE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Settings of the loss; the `objective` part of config.json."""

    alpha: float = 1.0
    """Weight of the causal loss beside the drafts' 1."""
    block_weights: Sequence[float] = ()
    """How often each trained block size is drawn, relative to the others; empty = evenly."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha < float("inf"):
            raise ConfigError(f"--alpha must be 0 or above, not {self.alpha!r}")


def parse_drafts(words: Sequence[str], context: int) -> tuple[int, ...]:
    """Reads numbers of drafted tokens, 2 to `context` each; raises ConfigError."""
    sizes: list[int] = []
    for word in words:
        if not word.isdecimal() or not 2 <= int(word) <= context:
            raise ConfigError(
                f"--block-size {word!r}: tidar drafts blocks of 2 to {context} tokens (the context)"
            )
        if int(word) not in sizes:
            sizes.append(int(word))
    return tuple(sizes)


class Tidar(Family):
    """The family `tidar`."""

    name = "tidar"
    logit_shift = 1

    def make_config(self, options: Mapping[str, Any]) -> dict[str, Any]:
        given = check_options(
            self.name, options, ("block_sizes", "alpha"), needs_mask=self.has_mask
        )
        config = common_config(self.name, given, {"causal": True})
        default = str(min(DEFAULT_BLOCK_SIZE, given["context"]))
        words, weights = split_weights(given.get("block_sizes", default))
        chosen = {"alpha": given["alpha"]} if "alpha" in given else {}
        return {
            **config,
            "noise_schedule": {},
            "block_sizes": list(parse_drafts(words, given["context"])),
            "objective": asdict(Objective(**chosen, block_weights=weights)),
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
        del shard
        sizes, objective = config["block_sizes"], Objective(**config["objective"])
        block_size = draw_size(sizes, objective.block_weights, generator)
        causal, drafts = self._nats(model, batch.ids, block_size, config)
        alpha = objective.alpha
        loss = (alpha * causal.mean() + drafts.mean()) / (1.0 + alpha)
        return LossOutput(loss=loss, num_tokens=causal.numel())

    @torch.no_grad()
    def eval_loss(
        self, model: nn.Module, batch: Batch, config: Mapping[str, Any], *, seed: int
    ) -> dict[str, torch.Tensor]:
        """Is exact: the seed changes nothing.

        `ar` is the likelihood; `draft 8` the cross-entropy of the masks of blocks of 8, which is no
        likelihood: it says how often drafts will be right.
        """
        del seed
        figures: dict[str, torch.Tensor] = {}
        for block_size in config["block_sizes"]:
            causal, drafts = self._nats(model, batch.ids, block_size, config)
            figures.setdefault("ar", causal.double().sum(dim=1).cpu())
            figures[f"draft {block_size}"] = drafts.double().sum(dim=1).cpu()
        return figures

    def graphs(self, model: nn.Module, config: Mapping[str, Any]) -> Sequence[ExportGraph]:
        """Gives one graph, `step`, or its parts `step` and `head`."""
        return draft_graphs(model, config)

    def _nats(
        self, model: nn.Module, ids: torch.Tensor, block_size: int, config: Mapping[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Negative log-likelihoods of tokens 1 to L - 1 by the clean half and by the masks.

        Returns:
            Two (B, L - 1) float32, from one forward of 2 L positions.
        """
        batch, length = ids.shape
        both = torch.cat([ids, torch.full_like(ids, config["mask_token_id"])], dim=1)
        places = torch.arange(length, device=ids.device)
        # Of the clean half all but the last row predict a token, of the masks all but the first.
        wanted = torch.cat([places[:-1], length + places[1:]])
        rows = (torch.arange(batch, device=ids.device)[:, None] * 2 * length + wanted).flatten()
        visible = draft_mask(length, block_size, ids.device)
        nats = model(
            both,
            torch.cat([places, places]),
            visible,
            rows=rows,
            targets=torch.cat([ids[:, 1:], ids[:, 1:]], dim=1).flatten(),
            forbidden=forbidden_ids(config),
        )
        causal, drafts = nats.view(batch, -1).split(length - 1, dim=1)
        return causal, drafts
