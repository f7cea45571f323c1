"""The graph `denoise`, which several families export: the block step over a key-value cache."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from ...runtime.errors import ConfigError
from ..nn.block_step import BlockStep
from ..nn.masks import causal_mask
from ..nn.transformer import Transformer
from .base import Corrupt, ExportGraph, GraphTensor
from .shapes import cached_shapes


def denoise_graph(model: nn.Module, config: Mapping[str, Any]) -> ExportGraph:
    """Describes the block step of a native backbone; raises ConfigError for another one."""
    if not isinstance(model, Transformer):
        raise ConfigError(f"backbone {config['model']['backbone']!r} has no block-step graph")
    shape = model.config
    cache = ("batch", shape.num_layers, 2, shape.num_kv_heads, shape.head_dim)
    inputs = [
        GraphTensor(name="ids", dtype="int32", shape=("batch", "rows"), role="canvas"),
        GraphTensor(name="start", dtype="int32", shape=("batch",), role="start"),
        GraphTensor(
            name="kv", dtype="float32", shape=("context", *cache), role="kv", lifetime="request"
        ),
    ]
    if not shape.causal:
        inputs.append(GraphTensor(name="split", dtype="int32", shape=("batch",), role="split"))
    if shape.time_conditioning:
        inputs.append(
            GraphTensor(name="time", dtype="float32", shape=("batch", "rows"), role="time")
        )
    logits = ("batch", "rows", shape.vocab_size)
    return ExportGraph(
        name="denoise",
        module=BlockStep(model).eval(),
        inputs=tuple(inputs),
        outputs=(
            GraphTensor(name="logits", dtype="float32", shape=logits, role="logits"),
            GraphTensor(name="kv_new", dtype="float32", shape=("rows", *cache), role="kv_new"),
        ),
        shapes=partial(
            cached_shapes,
            trained=config["block_sizes"],
            max_position=shape.context,
            causal=shape.causal,
        ),
        corrupt=None if shape.causal else mask_noise(config["mask_token_id"]),
        uncached=partial(uncached_logits, model),
    )


def mask_noise(mask_token_id: int) -> Corrupt:
    """Gives the noise of masked diffusion: a share of the positions, given as the input `time`."""

    def corrupt(
        clean: np.ndarray, level: float, rng: np.random.Generator, block: int | None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        del block
        noisy = clean.copy()
        noisy[rng.permutation(len(clean))[: round(level * len(clean))]] = mask_token_id
        return noisy, {"time": level}

    return corrupt


def uncached_logits(
    model: Transformer, context: torch.Tensor, block: torch.Tensor, inputs: Mapping[str, Any]
) -> torch.Tensor:
    """Logits of a block after a clean context, computed by one forward without a cache.

    Args:
        context: (1, C) ids, a whole number of blocks.
        block: (1, B) ids, read as noisy: a time-conditioned model gets the share of masks 1.

    Returns:
        (1, B, V).
    """
    del inputs
    past, size = context.shape[1], block.shape[1]
    positions = torch.arange(past + size)
    if model.config.causal:
        visible = causal_mask(past + size, context.device)
    else:
        number = positions // size
        visible = number[:, None] >= number[None, :]
    time = torch.cat([torch.zeros(1, past), torch.ones(1, size)], dim=1)
    return model(torch.cat([context, block], dim=1), positions, visible, time=time)[:, past:]
