"""The score network: a transformer over the whole canvas, with the noise level by adaLN-zero.

The noise sigma of a sequence becomes sinusoids, an MLP makes them a condition vector, and every
layer (and the final norm) is scaled, shifted and gated by it. Outputs are log-scores, log p_t(y) /
p_t(x) per position and token y, 0 at the token x that is there.

The sinusoids are those of log sigma: noise goes over five decades, and near clean text a score's
magnitude is proportional to sigma, which sinusoids of sigma itself cannot resolve there. Published
networks (backbone `ddit`) see those of sigma.

A network may predict the clean text instead (Duo): with its probabilities x, the ratios are those
of q_t(y | x) = alpha x_y + (1 - alpha) / K over K states, so that the analytic step draws from
Duo's posterior q(x_s | x_t, x) itself.

Knows no objective and no schedule. Source: SEDD (arXiv 2310.16834), section 5 and appendix D;
adaLN-zero: DiT (arXiv 2212.09748).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...runtime.errors import ConfigError
from ...runtime.noise.transition import GRAPHS
from .config import ModelConfig
from .layers import Angles, Attention, inverse_frequencies, rotate, training_rotation
from .transformer import Attend, Trunk, fused_attention, init_weights

NUM_WAVES = 128
"""Frequencies of the sinusoids."""
LOWEST_WAVE, HIGHEST_WAVE = 0.2, 40.0
"""Radians per unit of log sigma: from one turn over all noise levels to 0.15 per turn."""
LEAST_SIGMA = 1e-6
"""Smaller noise looks the same to the network."""
NO_STATE = -1e4
"""Log-score of what is no state; finite in float16."""
SERIES_BELOW = 0.5
"""Where the logarithm of exp(sigma) - 1 is taken from its series: exact to 1e-9 there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreConfig:
    """Shape of a score network: a transformer's, and what is its own."""

    shape: ModelConfig
    condition_dim: int
    """Width of the condition vector."""
    graph: str
    """What noise does: `uniform` or `absorb`. Under `absorb`, outputs are scaled by sigma, so that
    an untrained network gives a masked position's scores the right total."""
    predicts: str = "score"
    """`score`; or `x0`, logits of the clean text, of uniform noise only: the last row is the mask,
    which is no state."""

    def __post_init__(self) -> None:
        if self.graph not in GRAPHS:
            raise ConfigError(f"graph must be {' or '.join(GRAPHS)}, not {self.graph!r}")
        if self.predicts != "score" and (self.predicts, self.graph) != ("x0", "uniform"):
            raise ConfigError(
                "model predicts must be score, or x0 with graph uniform, not "
                f"{self.predicts!r} with {self.graph}"
            )
        if not isinstance(self.condition_dim, int) or self.condition_dim < 1:
            raise ConfigError(
                f"model condition_dim must be a positive integer, not {self.condition_dim!r}"
            )
        shape = self.shape
        if shape.backbone not in ("native", "ddit") or shape.num_kv_heads != shape.num_heads:
            raise ConfigError(
                "a score network has the backbone native or ddit, and as many kv heads as heads; "
                "leave out --backbone and --kv-heads"
            )

    def to_json(self) -> dict[str, Any]:
        """Gives a flat mapping."""
        own = {
            "condition_dim": self.condition_dim,
            "graph": self.graph,
            "predicts": self.predicts,
        }
        return {**asdict(self.shape), **own}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ScoreConfig:
        """Reads what `to_json` gave; raises ConfigError on missing or unknown keys."""
        rest = dict(values)
        try:
            own = {name: rest.pop(name) for name in ("condition_dim", "graph")}
        except KeyError as error:
            raise ConfigError(f"model config lacks the key {error}") from error
        own["predicts"] = rest.pop("predicts", "score")
        return cls(shape=ModelConfig.from_json(rest), **own)


class SigmaEmbedding(nn.Module):
    """Sinusoids of log sigma, or of sigma, then a two-layer MLP: (B,) float32 to (B, condition)."""

    waves: torch.Tensor

    def __init__(self, condition_dim: int, *, logarithmic: bool = True) -> None:
        super().__init__()
        self.logarithmic = logarithmic
        if logarithmic:
            span = torch.linspace(math.log(LOWEST_WAVE), math.log(HIGHEST_WAVE), NUM_WAVES)
        else:
            span = -math.log(1e4) * torch.arange(NUM_WAVES, dtype=torch.float32) / NUM_WAVES
        self.register_buffer("waves", torch.exp(span), persistent=False)
        self.hidden = nn.Linear(2 * NUM_WAVES, condition_dim)
        self.out = nn.Linear(condition_dim, condition_dim)

    def forward(self, sigma: torch.Tensor) -> torch.Tensor:
        """See the class; the result has gone through SiLU."""
        level = torch.log(sigma.clamp(min=LEAST_SIGMA)) if self.logarithmic else sigma
        angles = level[:, None] * self.waves
        features = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
        return F.silu(self.out(F.silu(self.hidden(features))))


def plain_attention(
    attention: Attention,
    x: torch.Tensor,
    angles: Angles,
    mask: torch.Tensor | None,
    num_outputs: int | None,
) -> torch.Tensor:
    """Attention among all positions as plain products, as export traces it."""
    del mask, num_outputs
    heads, size = attention.num_heads, attention.head_dim
    mixed = attention.qkv(x).unflatten(-1, (3 * heads, size))
    turned = rotate(mixed[:, :, : 2 * heads], *angles)
    # Scaled before the product: so TensorRT recognises attention.
    query = turned[:, :, :heads].transpose(1, 2) * size**-0.5
    key, value = turned[:, :, heads:].permute(0, 2, 3, 1), mixed[:, :, 2 * heads :]
    seen = torch.softmax(query @ key, dim=-1) @ value.transpose(1, 2)
    return attention.out(seen.transpose(1, 2).flatten(2))


class ScoreNet(nn.Module):
    """Embedding, trunk and head, and the form of a score."""

    inv_freq: torch.Tensor

    def __init__(self, config: ScoreConfig) -> None:
        super().__init__()
        self.config = config
        shape = config.shape
        self.embed = nn.Embedding(shape.vocab_size, shape.dim)
        published = shape.backbone == "ddit"
        self.sigma = SigmaEmbedding(config.condition_dim, logarithmic=not published)
        self.trunk = Trunk(shape, config.condition_dim, condition_norm=True)
        self.head = nn.Linear(shape.dim, shape.vocab_size, bias=shape.head_bias)
        if shape.tie_embeddings:
            self.head.weight = self.embed.weight
        rates = inverse_frequencies(shape.head_dim, reciprocal=published)
        self.register_buffer("inv_freq", rates, persistent=False)
        init_weights(self, shape.num_layers)

    def forward(
        self, ids: torch.Tensor, sigma: torch.Tensor, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Computes log-scores.

        Args:
            ids: (B, L) integers.
            sigma: (B,) float32, total noise of each sequence.
            rows: Indices (N,) int64 into the flattened (B, L) grid whose scores are wanted; None =
                all.

        Returns:
            (N, V) with `rows`, else (B, L, V), float32.
        """
        hidden = self.hidden(ids, sigma)
        level = sigma[:, None].expand(ids.shape)
        if rows is not None:
            hidden, ids = hidden.flatten(0, 1)[rows], ids.flatten()[rows]
            level = level.flatten()[rows]
        return self.score(self.head(hidden).float(), ids, level)

    def hidden(
        self, ids: torch.Tensor, sigma: torch.Tensor, attend: Attend = fused_attention
    ) -> torch.Tensor:
        """Everything before the head: ids (B, L) and sigma (B,) to (B, L, dim)."""
        x = self.embed(ids)
        positions = torch.arange(ids.shape[1], device=ids.device)
        angles = training_rotation(positions, self.inv_freq)
        return self.trunk(x, angles, condition=self.sigma(sigma), attend=attend)

    def score(self, raw: torch.Tensor, ids: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Makes log-scores (…, V) of raw outputs: scaled by sigma, 0 at the own token (…)."""
        if self.config.predicts == "x0":
            return _scores_of_text(raw, ids, sigma)
        if self.config.graph == "absorb":
            raw = raw - (log_expm1(sigma) + math.log(raw.shape[-1] - 1))[..., None]
        own = ids[..., None] == torch.arange(raw.shape[-1], device=ids.device, dtype=ids.dtype)
        return raw.masked_fill(own, 0.0)


def _scores_of_text(raw: torch.Tensor, ids: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Log-scores (…, V) of logits of the clean text, whose last row, the mask, is no state.

    In logarithms: shares of 1e-8 are none in float16. alpha is left out on both sides of the ratio.
    """
    states = raw.shape[-1] - 1
    text = torch.log_softmax(raw[..., :-1], dim=-1)
    even = (log_expm1(sigma) - math.log(states))[..., None]
    likely = torch.maximum(text, even) + torch.log(1.0 + torch.exp(-(text - even).abs()))
    own = ids[..., None] == torch.arange(states, device=ids.device, dtype=ids.dtype)
    here = likely.masked_fill(~own, NO_STATE).amax(dim=-1, keepdim=True)
    scores = (likely - here).masked_fill(own, 0.0)
    return torch.cat([scores, torch.full_like(scores[..., :1], NO_STATE)], dim=-1)


def log_expm1(sigma: torch.Tensor) -> torch.Tensor:
    """log(exp(sigma) - 1), float32 to its last digits, in operators that every backend has."""
    square = sigma * sigma
    series = torch.log(sigma.clamp(min=LEAST_SIGMA)) + sigma / 2 + square / 24
    series = series - square * square / 2880
    plain = torch.log(torch.exp(sigma.clamp(min=SERIES_BELOW)) - 1.0)
    return torch.where(sigma < SERIES_BELOW, series, plain)


class ScoreStep(nn.Module):
    """The exported form: one canvas, plain products, the weights of the ScoreNet it wraps.

    | tensor | shape | dtype | role |
    |---|---|---|---|
    | ids | (batch, rows) | int32 | canvas |
    | sigma | (batch,) | float32 | sigma: total noise of each canvas |
    | log_score | (batch, rows, vocab) | float32 | logits: log p_t(y) / p_t(x), 0 at the own token |
    """

    def __init__(self, model: ScoreNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor]:
        """Returns (log_score,); the class has the table."""
        raw = self.model.head(self.model.hidden(ids, sigma, plain_attention))
        return (self.model.score(raw, ids, sigma[:, None].expand(ids.shape)),)
