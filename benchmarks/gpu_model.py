"""What is timed on a GPU: a forward in float16 with random weights, and a rule in plain PyTorch."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..runtime.bundle.manifest import GraphSpec, TensorSpec
from ..train.families import FAMILIES
from ..train.nn.block_step import BlockStep
from ..train.nn.layers import Angles, Attention

HIDDEN = -6e4
"""In float16, what no score reaches."""


class HalfStep(BlockStep):
    """The exported module with a mask and angles that leave float16 products in float16."""

    def attend(
        self,
        attention: Attention,
        x: torch.Tensor,
        past: torch.Tensor,
        angles: Angles,
        bias: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See BlockStep."""
        return super().attend(
            attention, x, past, (angles[0].to(x.dtype), angles[1].to(x.dtype)), bias
        )

    def visibility(
        self, start: torch.Tensor, split: torch.Tensor | None, block: torch.Tensor, context: int
    ) -> torch.Tensor:
        """See BlockStep."""
        mask = super().visibility(start, split, block, context)
        return mask.clamp(min=HIDDEN).to(self.model.embed.weight.dtype)


def half_module(size: Mapping[str, int], device: str) -> HalfStep:
    """Makes the module of a masked model with random float16 weights."""
    torch.manual_seed(0)
    family = FAMILIES["mdlm"]
    config = family.make_config(
        {
            "dim": size["dim"],
            "num_layers": size["layers"],
            "num_heads": max(size["dim"] // 64, 1),
            "vocab_size": size["vocab"],
            "context": size["context"] + size["block"],
            "eos_token_id": 0,
            "mask_token_id": 1,
            "block_sizes": str(size["block"]),
        }
    )
    return HalfStep(family.make_model(config["model"])).half().to(device).eval()


def half_spec(size: Mapping[str, int], module: HalfStep) -> GraphSpec:
    """Describes its graph at one shape, float16 throughout."""
    config = module.model.config
    cache = (1, size["layers"], 2, config.num_heads, config.head_dim)
    block, context, vocab = size["block"], size["context"], size["vocab"]
    return GraphSpec(
        name="denoise",
        file="graphs/denoise.onnx",
        dims={"batch": 1, "rows": block, "context": context},
        purpose="denoise",
        block=block,
        precision="fp16",
        inputs=(
            TensorSpec(name="ids", dtype="int32", shape=(1, block), role="canvas"),
            TensorSpec(name="start", dtype="int32", shape=(1,), role="start"),
            TensorSpec(name="kv", dtype="float16", shape=(context, *cache), role="kv"),
        ),
        outputs=(
            TensorSpec(name="logits", dtype="float16", shape=(1, block, vocab), role="logits"),
            TensorSpec(name="kv_new", dtype="float16", shape=(block, *cache), role="kv_new"),
        ),
    )


def eager_rule(
    logits: torch.Tensor, ids: torch.Tensor, masked: torch.Tensor, threshold: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The threshold rule at temperature 1 in plain PyTorch: ids, masked flags and their number.

    Args:
        logits: (block, vocab) float16.
        ids: (block,) int64.
        masked: (block,) bool.
        threshold: Confidence to commit from.
    """
    own = logits.float()
    own = own.index_fill(1, torch.ones(1, dtype=torch.int64, device=own.device), -torch.inf)
    probabilities = torch.softmax(own, dim=-1)
    tokens = torch.multinomial(probabilities, 1)[:, 0]
    confidence = probabilities.gather(1, tokens[:, None])[:, 0]
    confidence = torch.where(masked, confidence, -1.0)
    best = torch.arange(len(ids), device=ids.device) == confidence.argmax()
    accepted = masked & ((confidence >= threshold) | best)
    left = masked & ~accepted
    return torch.where(accepted, tokens, ids), left, left.sum()


def eager_draft_rule(
    rows: torch.Tensor, masks: torch.Tensor, drafted: torch.Tensor, ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A step over B drafts at temperature 1 in plain PyTorch, without waiting for the device.

    Args:
        rows: (B, vocab) float16: behind each draft.
        masks: (B, B, vocab) float16: every proposal's.
        drafted: (B, vocab) float32: what drafts 1..B-1 were drawn from; row 0 is not read.
        ids: (B,) int64: the drafts.

    Returns:
        The next drafts (B,), the number kept, and what the next drafts were drawn from (B, vocab).
    """
    banned = torch.ones(1, dtype=torch.int64, device=rows.device)
    p = torch.softmax(rows.float().index_fill(1, banned, -torch.inf), dim=-1)
    own = p[:-1].gather(1, ids[1:, None])[:, 0]
    theirs = drafted[1:].gather(1, ids[1:, None])[:, 0]
    keeps = torch.rand_like(own) * theirs < own
    kept = 1 + keeps.long().cumprod(0).sum()
    residual = (p[:-1] - drafted[1:]).clamp(min=0)
    residual = torch.where(residual.sum(1, keepdim=True) > 0, residual, p[:-1])
    last = (kept - 1)[None]
    token = torch.multinomial(torch.cat([residual, p[-1:]]).index_select(0, last), 1)[0]
    chosen = masks.index_select(0, last)[0].float()
    q = torch.softmax(chosen.index_fill(1, banned, -torch.inf), dim=-1)
    return torch.cat([token, torch.multinomial(q, 1)[1:, 0]]), kept, q
