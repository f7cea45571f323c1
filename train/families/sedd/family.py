"""Score-entropy discrete diffusion (SEDD): a score network under the uniform or absorbing graph.

The network sees a noisy canvas and its noise sigma, and gives every token's ratio of likelihood to
the one that is there. Its loss is the score entropy, whose integral over sigma bounds the
negative log-likelihood (`runtime/noise/score_entropy.py`). There is no cache: a block size is the
length of a canvas, and training on several lengths makes a model that writes texts of each.
Position 0 is given: never noised, never scored.

Noise and loss are in `loss.py`; the exported graph and its tensors in `nn/score_net.py`.

Source: SEDD (arXiv 2310.16834), algorithm 1; low-discrepancy times: MDLM (arXiv 2406.07524).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ....runtime.errors import ConfigError
from ....runtime.noise.schedule import NoiseSchedule, make_schedule, schedule_to_json
from ...nn.score_net import ScoreConfig, ScoreNet, ScoreStep
from ..base import Batch, ExportGraph, Family, GraphTensor, LossOutput
from ..noise import MASKINGS
from ..options import check_options, common_config, draw_size, parse_block_sizes, split_weights
from ..shapes import canvas_shapes
from .loss import canvas_noise, cut, draw, end_nats, position_nats

OWN_OPTIONS = (
    "block_sizes",
    "graph",
    "noise_schedule",
    "sigma_min",
    "sigma_max",
    "condition_dim",
    "predicts",
    "masking",
)
SCHEDULE_OF = {"uniform": "geometric", "absorb": "loglinear"}
"""Default noise per graph: the paper's."""
SIGMA_RANGE = (1e-4, 20.0)
"""Default range of geometric noise."""
PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The shape of a public character-level model: 256 positions, about 106 characters.
    "char": {"dim": 640, "num_layers": 10, "num_heads": 10, "condition_dim": 160, "dropout": 0.2},
}
"""Sizes beside the backbone's own."""
CONDITION_SHARE = 4
"""Default width of the condition vector: a quarter of the residual stream's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Settings of the loss; the `objective` part of config.json."""

    masking: str = "independent"
    """How masks of the absorbing graph are drawn; `count` has less variance (see `noise`)."""
    block_weights: Sequence[float] = ()
    """How often each trained length is drawn, relative to the others; empty = evenly."""

    def __post_init__(self) -> None:
        if self.masking not in MASKINGS:
            raise ConfigError(f"--masking must be {' or '.join(MASKINGS)}, not {self.masking!r}")


class Sedd(Family):
    """The family `sedd`."""

    name = "sedd"
    logit_shift = 0

    def make_config(self, options: Mapping[str, Any]) -> dict[str, Any]:
        preset = PRESETS.get(str(options.get("size")), {})
        given = {name: value for name, value in options.items() if value is not None}
        if preset:
            given = {**preset, **given}
            del given["size"]
        given = check_options(self.name, given, OWN_OPTIONS, needs_mask=self.has_mask)
        shared = {name: value for name, value in given.items() if name not in OWN_OPTIONS}
        config = common_config(self.name, shared, {"causal": False})
        graph = given.get("graph", "absorb")
        width = given.get("condition_dim", max(config["model"]["dim"] // CONDITION_SHARE, 1))
        words, weights = split_weights(given.get("block_sizes", "full"))
        lengths = parse_block_sizes(words, given["context"])
        if min(lengths) < 2:
            raise ConfigError("a canvas of sedd must have 2 positions or more: its first is given")
        own = {"graph": graph, "condition_dim": width, "predicts": given.get("predicts", "score")}
        shape = ScoreConfig.from_json({**config["model"], **own})
        if graph == "uniform" and given.get("masking", "independent") != "independent":
            raise ConfigError("--masking count needs --graph absorb: uniform noise has no masks")
        objective = Objective(masking=given.get("masking", "independent"), block_weights=weights)
        return {
            **config,
            "model": shape.to_json(),
            "noise_schedule": schedule_to_json(_schedule(graph, given)),
            "block_sizes": list(lengths),
            "objective": asdict(objective),
        }

    def make_model(self, config: Mapping[str, Any]) -> nn.Module:
        return ScoreNet(ScoreConfig.from_json(config))

    def loss(
        self,
        model: nn.Module,
        batch: Batch,
        generator: torch.Generator,
        config: Mapping[str, Any],
        *,
        shard: tuple[int, int] = (0, 1),
    ) -> LossOutput:
        """Draws the length per batch from those trained, and cuts ids to it."""
        sizes, objective = config["block_sizes"], Objective(**config["objective"])
        length = draw_size(sizes, objective.block_weights, generator)
        rows = cut(batch.ids, length)
        noisy = draw(rows, config, objective.masking, generator, shard)
        nats = position_nats(model, rows, noisy, config)
        num_tokens = rows.shape[0] * (length - 1)
        return LossOutput(loss=nats.sum() / num_tokens, num_tokens=num_tokens)

    @torch.no_grad()
    def eval_loss(
        self, model: nn.Module, batch: Batch, config: Mapping[str, Any], *, seed: int
    ) -> dict[str, torch.Tensor]:
        """Counts a length below the context as if every token were scored.

        The prior term is in it: what the largest noise leaves of the text.
        """
        masking = "count" if config["model"]["graph"] == "absorb" else "independent"
        count, context = batch.ids.shape
        prior = end_nats(config)
        figures: dict[str, torch.Tensor] = {}
        for length in config["block_sizes"]:
            generator = torch.Generator().manual_seed(seed)
            rows = cut(batch.ids, length)
            noisy = draw(rows, config, masking, generator, (0, 1))
            nats = position_nats(model, rows, noisy, config).double().cpu()
            scored = rows.shape[0] // count * (length - 1)
            name = "full" if length == config["model"]["context"] else str(length)
            spent = nats.view(count, -1).sum(dim=1) + scored * prior
            figures[name] = spent * ((context - 1) / scored)
        return figures

    def graphs(self, model: nn.Module, config: Mapping[str, Any]) -> Sequence[ExportGraph]:
        """Gives one graph, `score`; `nn/score_net.py` has the table of its tensors."""
        if not isinstance(model, ScoreNet):
            raise ConfigError(f"backbone {config['model']['backbone']!r} has no score graph")
        shape = ("batch", "rows", model.config.shape.vocab_size)
        return (
            ExportGraph(
                name="score",
                module=ScoreStep(model).eval(),
                inputs=(
                    GraphTensor(name="ids", dtype="int32", shape=("batch", "rows"), role="canvas"),
                    GraphTensor(name="sigma", dtype="float32", shape=("batch",), role="sigma"),
                ),
                outputs=(
                    GraphTensor(name="log_score", dtype="float32", shape=shape, role="logits"),
                ),
                shapes=partial(
                    canvas_shapes,
                    trained=config["block_sizes"],
                    max_position=model.config.shape.context,
                ),
                corrupt=canvas_noise(config),
            ),
        )


def _schedule(graph: str, given: Mapping[str, Any]) -> NoiseSchedule:
    """Makes the schedule asked for; sigma_min and sigma_max belong to geometric noise."""
    name = given.get("noise_schedule", SCHEDULE_OF[graph])
    limits = {key: given[key] for key in ("sigma_min", "sigma_max") if key in given}
    if name == "geometric":
        limits = {"sigma_min": SIGMA_RANGE[0], "sigma_max": SIGMA_RANGE[1], **limits}
    return make_schedule(name, **limits)
