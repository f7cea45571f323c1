"""The graph `denoise`, which several families export: the block step over a key-value cache; and
its head as a graph of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from ...runtime.errors import ConfigError
from ..nn.block_step import BlockStep, Head, LayerCacheStep
from ..nn.masks import causal_mask
from ..nn.transformer import Transformer
from .base import Corrupt, ExportGraph, GraphTensor, Shapes
from .shapes import cached_shapes, causal_head_shapes, causal_shapes


def denoise_graph(model: nn.Module, config: Mapping[str, Any]) -> ExportGraph:
    """Describes the block step of a bidirectional native backbone."""
    shapes = partial(
        cached_shapes, trained=config["block_sizes"], max_position=config["model"]["context"]
    )
    return _block_step(model, config, shapes, corrupt=mask_noise(config["mask_token_id"]))


def causal_graph(model: nn.Module, config: Mapping[str, Any]) -> ExportGraph:
    """Describes the step of a causal native backbone, which may be exported as its parts."""

    def shapes(on_cpu: bool) -> Shapes:
        return partial(causal_shapes, max_position=config["model"]["context"], on_cpu=on_cpu)

    trunk = _layer_cache_step(model, config, shapes(True))
    parts = (trunk, head_graph(model, causal_head_shapes))
    return _block_step(model, config, shapes(False), parts=parts)


def head_graph(model: nn.Module, shapes: Shapes) -> ExportGraph:
    """Describes a native backbone's head as a graph of its own."""
    assert isinstance(model, Transformer)
    rows = ("batch", "rows", model.config.dim)
    return ExportGraph(
        name="head",
        module=Head(model).eval(),
        inputs=(GraphTensor(name="rows", dtype="float32", shape=rows, role="hidden_rows"),),
        outputs=(result_tensor(model, with_head=True),),
        shapes=shapes,
    )


def result_tensor(model: Transformer, *, with_head: bool) -> GraphTensor:
    """Describes logits, or what a head reads."""
    name, width = ("logits", model.config.vocab_size) if with_head else ("hidden", model.config.dim)
    return GraphTensor(name=name, dtype="float32", shape=("batch", "rows", width), role=name)


def _block_step(
    model: nn.Module,
    config: Mapping[str, Any],
    shapes: Shapes,
    *,
    with_head: bool = True,
    corrupt: Corrupt | None = None,
    parts: tuple[ExportGraph, ...] = (),
) -> ExportGraph:
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
    return ExportGraph(
        name="denoise",
        module=BlockStep(model, with_head=with_head).eval(),
        inputs=tuple(inputs),
        outputs=(
            result_tensor(model, with_head=with_head),
            GraphTensor(name="kv_new", dtype="float32", shape=("rows", *cache), role="kv_new"),
        ),
        shapes=shapes,
        corrupt=corrupt,
        uncached=partial(uncached_logits, model),
        parts=parts,
    )


def _layer_cache_step(model: nn.Module, config: Mapping[str, Any], shapes: Shapes) -> ExportGraph:
    """Describes the trunk of a causal backbone with caches of its own for each layer."""
    whole = _block_step(model, config, shapes, with_head=False)
    assert isinstance(model, Transformer)
    shape = ("batch", model.config.num_kv_heads, model.config.head_dim)
    caches = [
        (f"{kind}.{layer}", layer)
        for layer in range(model.config.num_layers)
        for kind in ("keys", "values")
    ]
    read = [
        GraphTensor(
            name=name, dtype="float32", shape=("context", *shape), role=f"kv.{name}",
            lifetime="request", layer=layer,
        )
        for name, layer in caches
    ]  # fmt: skip
    added = [
        GraphTensor(
            name=f"new_{name}", dtype="float32", shape=("rows", *shape), role=f"kv.{name}_new",
            layer=layer,
        )
        for name, layer in caches
    ]  # fmt: skip
    return replace(
        whole,
        module=LayerCacheStep(model, with_head=False).eval(),
        inputs=(*(item for item in whole.inputs if item.role != "kv"), *read),
        outputs=(*(item for item in whole.outputs if item.role != "kv_new"), *added),
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
        block: (1, B) ids.
        inputs: `time`, the share of masks, for models that see it: one number, or one a position,
            the block's the last.

    Returns:
        (1, B, V).
    """
    past, size = context.shape[1], block.shape[1]
    positions = torch.arange(past + size)
    if model.config.causal:
        visible = causal_mask(past + size, context.device)
    else:
        number = positions // size
        visible = number[:, None] >= number[None, :]
    level = torch.as_tensor(inputs.get("time", 1.0), dtype=torch.float32).reshape(-1)[-size:]
    time = torch.cat([torch.zeros(1, past), level.expand(1, size)], dim=1)
    return model(torch.cat([context, block], dim=1), positions, visible, time=time)[:, past:]
