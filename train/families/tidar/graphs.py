"""The graphs of a model that drafts and verifies in one run: `step`, or `step` and `head`.

Targets that read all weights in every run anyway take one graph with its head; where arithmetic is
what costs, the head is a graph of its own and computes the rows that are looked at. Tensors are in
`nn/draft_step.py`'s table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from ....runtime.errors import ConfigError
from ....runtime.families.layout import causal_layout
from ....runtime.families.tidar.layout import draft_layout, draft_rows
from ...nn.draft_step import DraftStep
from ...nn.transformer import Transformer
from ..base import Corrupt, ExportGraph, GraphTensor
from ..graphs import head_graph, result_tensor
from ..shapes import CAUSAL_BLOCK, WHOLE_CANVAS, Shape, check_sizes, named_shape


def draft_graphs(model: nn.Module, config: Mapping[str, Any]) -> tuple[ExportGraph, ...]:
    """Describes the one graph `step`, which may be exported as its parts.

    Args:
        config: Has `mask_token_id` and `block_sizes`, the draft lengths that were trained on.

    Raises:
        ConfigError: A backbone without a block step.
    """
    if not isinstance(model, Transformer) or not model.config.causal:
        raise ConfigError("a model that verifies its own drafts must be a causal transformer")
    shape = model.config
    trained = tuple(config["block_sizes"])
    heads = partial(head_shapes, trained=trained, max_position=shape.context)
    split = (_step(model, config, with_head=False), head_graph(model, heads))
    return (_step(model, config, parts=split),)


def _step(
    model: Transformer,
    config: Mapping[str, Any],
    *,
    with_head: bool = True,
    parts: tuple[ExportGraph, ...] = (),
) -> ExportGraph:
    """The graph over the cache that gives logits, or what a head reads."""
    shape = model.config
    cache = ("batch", shape.num_layers, 2, shape.num_kv_heads, shape.head_dim)
    return ExportGraph(
        name="step",
        module=DraftStep(model, with_head=with_head).eval(),
        inputs=(
            GraphTensor(name="ids", dtype="int32", shape=("batch", "rows"), role="canvas"),
            GraphTensor(name="start", dtype="int32", shape=("batch",), role="start"),
            GraphTensor(name="offsets", dtype="int32", shape=("batch", "rows"), role="offsets"),
            GraphTensor(
                name="visible", dtype="float32", shape=("batch", "rows", "rows"), role="visible"
            ),
            GraphTensor(
                name="kv", dtype="float32", shape=("context", *cache), role="kv", lifetime="request"
            ),
        ),
        outputs=(
            result_tensor(model, with_head=with_head),
            GraphTensor(name="kv_new", dtype="float32", shape=("rows", *cache), role="kv_new"),
        ),
        shapes=partial(
            draft_shapes, trained=tuple(config["block_sizes"]), max_position=shape.context
        ),
        corrupt=drafting(config["mask_token_id"], shape.vocab_size),
        uncached=partial(uncached_logits, model),
        parts=parts,
    )


def drafting(mask_token_id: int, vocab_size: int) -> Corrupt:
    """Gives the canvases of decoding: at level 0 known text, else drafts and their proposals.

    Of the drafts but the first a share, the level, is wrong, as drafts are; every mask is masked.
    Shapes that draft nothing are read as known text at every level.
    """

    def corrupt(
        clean: np.ndarray, level: float, rng: np.random.Generator, block: int | None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        rows = len(clean)
        wrong = rng.integers(vocab_size, size=rows, dtype=np.int32)
        order = rng.permutation(max((block or 1) - 1, 0)) + 1
        if level == 0.0 or block is None:
            layout = causal_layout(rows)
            return clean.copy(), {"offsets": layout.offsets, "visible": layout.visible}
        noisy = np.full(rows, mask_token_id, np.int32)
        noisy[:block] = clean[:block]
        chosen = order[: round(level * len(order))]
        noisy[chosen] = wrong[chosen]
        layout = draft_layout(block)
        return noisy, {"offsets": layout.offsets, "visible": layout.visible}

    return corrupt


def uncached_logits(
    model: Transformer, context: torch.Tensor, block: torch.Tensor, inputs: Mapping[str, Any]
) -> torch.Tensor:
    """Logits of rows behind a clean context, computed by one forward without a cache.

    Args:
        inputs: `offsets` (B,) and `visible` (B, B) of the rows.

    Returns:
        (1, B, V).
    """
    past, size = context.shape[1], block.shape[1]
    positions = torch.cat([torch.arange(past), past + torch.tensor(inputs["offsets"])])
    seen = torch.zeros(past + size, past + size, dtype=torch.bool)
    seen[:past, :past] = torch.ones(past, past, dtype=torch.bool).tril()
    seen[past:, :past] = True
    seen[past:, past:] = torch.tensor(inputs["visible"]) > 0
    return model(torch.cat([context, block], dim=1), positions, seen)[:, past:]


def draft_blocks(
    blocks: Sequence[int | str], *, trained: Sequence[int], max_position: int
) -> tuple[int, ...]:
    """Gives the draft lengths on offer: those asked for, else those trained on that fit.

    Raises:
        ConfigError: A run of that many drafts and their proposals has more rows than the model has
            positions.
    """
    if WHOLE_CANVAS in blocks:
        raise ConfigError(
            f"--block {WHOLE_CANVAS} is the whole canvas of a model that sees both sides; here it "
            "is the number of tokens drafted at a time: give 4, 8 or 12"
        )
    fitting = tuple(size for size in trained if draft_rows(size) <= max_position)
    sizes = {size for size in blocks if isinstance(size, int)} or set(fitting)
    check_sizes("--block", sizes, max_position)
    for size in sorted(sizes):
        if draft_rows(size) > max_position:
            raise ConfigError(
                f"--block {size} makes runs of {draft_rows(size)} rows, more than the "
                f"{max_position} positions that the checkpoint was trained for; draft fewer tokens"
            )
    if not sizes:
        raise ConfigError(
            f"none of the draft lengths that the checkpoint was trained on fits its {max_position} "
            "positions: name a smaller --block"
        )
    return tuple(sorted(sizes))


def draft_shapes(
    blocks: Sequence[int | str],
    contexts: Sequence[int],
    *,
    trained: Sequence[int],
    max_position: int,
) -> tuple[Shape, ...]:
    """Lists the shapes of a draft-and-verify step, smallest first: B (1 + B) rows for each draft
    length B, and one row for token by token.

    Args:
        blocks: Draft lengths asked for; empty: those trained on.
        contexts: As `cached_shapes` takes them.

    Raises:
        ConfigError: A size is out of range.
    """
    sizes = draft_blocks(blocks, trained=trained, max_position=max_position)
    rows = set(contexts) or {max(max_position // 2, 1), max_position}
    check_sizes("--context", rows, max_position)
    found: list[Shape] = []
    for context in sorted(rows):
        found.append(named_shape(CAUSAL_BLOCK, context, "step"))
        found += [named_shape(draft_rows(size), context, "draft", size) for size in sizes]
    return tuple(found)


def head_shapes(
    blocks: Sequence[int | str],
    contexts: Sequence[int],
    *,
    trained: Sequence[int],
    max_position: int,
) -> tuple[Shape, ...]:
    """Lists the shapes of the head of such a step: one row, and as many as are drafted."""
    del contexts  # a head sees none
    sizes = draft_blocks(blocks, trained=trained, max_position=max_position)
    counts = sorted({CAUSAL_BLOCK, *sizes})
    return tuple(
        named_shape(size, None, "head", size if size in sizes else None) for size in counts
    )
