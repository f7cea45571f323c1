"""The desktop-side seam: what a family must say about training and export, and nothing else.

A family = one module with its config, denoiser, objective and graphs, and one line in
`families/__init__.py`. The training loop, exporter and calibrator know no family.

How the loop uses one:

    family = FAMILIES[name]
    config = family.make_config(options)      # plain JSON mapping; goes into config.json as it is
    model = family.make_model(config["model"])
    output = family.loss(model, batch, generator, config)     # output.loss.backward()
    figures = family.eval_loss(model, batch, config, seed=1)  # {"32": (B,) nats, "full": …}
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from ...runtime.bundle.manifest import GraphSpec, Manifest, TensorSpec
from ..data.batches import Batch
from .shapes import Shape

Corrupt = Callable[
    [np.ndarray, float, np.random.Generator, int | None], tuple[np.ndarray, Mapping[str, Any]]
]
"""Noise on clean ids (rows,) int32 at a level from 0 (none) to 1 (all), for a shape that serves a
text block: the noisy canvas, ids (rows,) or latents (rows, dim), and the values of the graph's
further inputs by role. Equal generators give noise that grows with the level."""
Uncached = Callable[[torch.Tensor, torch.Tensor, Mapping[str, Any]], torch.Tensor]
"""From the clean context (1, C), the block (1, B), B dividing C, both int32, and the values of
further inputs by role, to logits (1, B, V)."""
Shapes = Callable[[Sequence[int | str], Sequence[int]], tuple[Shape, ...]]
"""From block sizes ("full" is one) and contexts asked for, either may be empty, to the shapes on
offer; raises ConfigError for sizes that the graph cannot have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphTensor:
    """One input or output of an exported graph, in symbols."""

    name: str
    dtype: str
    """NumPy name."""
    shape: tuple[int | str, ...]
    """Integers, or names of dimensions: "batch", "rows", "context", …"""
    role: str
    lifetime: str = "run"
    """As in the manifest's TensorSpec."""
    layer: int | None = None
    """Layer that it belongs to, which ends its name; None: the whole graph's."""

    def sizes(self, dims: Mapping[str, int]) -> tuple[int, ...]:
        """Gives the shape in numbers."""
        return tuple(dims[size] if isinstance(size, str) else size for size in self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportGraph:
    """One graph that export traces: module, and its inputs and outputs in forward's order."""

    name: str
    module: nn.Module
    """Its forward takes the inputs positionally and returns the outputs as a tuple."""
    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]
    shapes: Shapes
    corrupt: Corrupt | None = None
    """What canvases look like on the way, to check and calibrate on; None: always clean."""
    uncached: Uncached | None = None
    """For graphs with a KV cache: the same logits from the training-time forward, which has none.
    Export holds the cache to it."""
    parts: tuple[ExportGraph, ...] = ()
    """The same computation as several graphs, for targets that gain by running the last of them on
    few rows: the first gives `hidden` where this one gives `logits`, the last reads `hidden_rows`
    and gives logits. They have the parameters of this one. Empty: it is exported whole."""

    def specs(self, shapes: Iterable[Shape], *, precision: str) -> tuple[GraphSpec, ...]:
        """Gives the manifest's entry for each shape."""

        def tensors(symbolic: Sequence[GraphTensor], shape: Shape) -> tuple[TensorSpec, ...]:
            return tuple(
                TensorSpec(
                    name=item.name,
                    dtype=item.dtype,
                    shape=item.sizes(shape.dims),
                    role=item.role,
                    lifetime=item.lifetime,
                )
                for item in symbolic
            )

        return tuple(
            GraphSpec(
                name=self.name,
                file=f"graphs/{self.name}.onnx",
                dims=shape.dims,
                purpose=shape.purpose,
                block=shape.block,
                precision=precision,
                inputs=tensors(self.inputs, shape),
                outputs=tensors(self.outputs, shape),
            )
            for shape in shapes
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """What one objective evaluation gives."""

    loss: torch.Tensor
    """Scalar to differentiate: the bound in nats per scored token."""
    num_tokens: int
    """Scored tokens."""


class Family(Protocol):
    """What `families/__init__.py` lists."""

    name: str
    logit_shift: int
    """1 where position i predicts token i + 1, 0 where it predicts its own."""
    has_mask: bool = True
    """Whether canvases hold the mask token; a tokenizer may have one all the same."""
    has_likelihood: bool = True
    """Whether `eval_loss` bounds the likelihood; if not, its nats are of what their names say."""

    def make_config(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Resolves options into the family's part of config.json.

        Every family takes: `size` (a preset's name) or `dim`, `num_layers`, `num_heads` (these
        override the preset), `vocab_size`, `context`, `eos_token_id`, `mask_token_id` (None for
        families without a mask), `pad_token_id` (or None), `start_ids`, `end_ids`,
        `tie_embeddings`, `dropout`, `backbone`; beside them those of its objective, such as
        `block_sizes` ("16,32,full"). Options that are None count as absent.

        Returns:
            A JSON mapping with `family`, `model`, `vocab_size`, `eos_token_id`, `mask_token_id`,
            `pad_token_id`, `noise_schedule`, `block_sizes`, `objective`. The caller may add keys
            (`format_version`, `training`, …); the family ignores those.

        Raises:
            ConfigError: An option is unknown, missing or out of range.
        """
        ...

    def make_model(self, config: Mapping[str, Any]) -> nn.Module:
        """Builds the denoiser from the `model` part of a checkpoint's config.json.

        Weights are drawn from torch's global generator: seed it first.
        """
        ...

    def loss(
        self,
        model: nn.Module,
        batch: Batch,
        generator: torch.Generator,
        config: Mapping[str, Any],
        *,
        shard: tuple[int, int] = (0, 1),
    ) -> LossOutput:
        """The objective on clean samples; all randomness comes from `generator`.

        The model is called through its `forward` only (a DDP or Fabric wrapper works), once.

        Args:
            model: What `make_model` gave, wrapped or not.
            batch: B samples of L tokens, on the model's device, with the fields that `fields`
                names; L divisible by every trained block size.
            generator: CPU generator. Its draws depend on B, L and `shard[1]`, not on the device.
            config: The checkpoint's config.json (what `make_config` gave).
            shard: (index, count). Noise is drawn for `count * B` sequences, of which these are
                rows `index * B` to `(index + 1) * B`; so `count` processes (or accumulation
                steps) with generators in equal state compute one large batch between them.
        """
        ...

    def eval_loss(
        self, model: nn.Module, batch: Batch, config: Mapping[str, Any], *, seed: int
    ) -> dict[str, torch.Tensor]:
        """The objective as a figure, with fixed noise, no gradient, for the periodic evaluation.

        Gives, per trained block size ("16", "full") or by a name of its own, a (B,) float64
        CPU tensor: each sequence's bound in nats, summed over its L - 1 scored tokens. The caller
        sets evaluation mode and autocast.
        """
        ...

    def graphs(self, model: nn.Module, config: Mapping[str, Any]) -> Sequence[ExportGraph]:
        """The graphs to export, in evaluation mode; `config` is the whole config.json."""
        ...

    def fields(self, config: Mapping[str, Any]) -> Mapping[str, int]:
        """What a sample has beside its ids: the tokens of each field, by name.

        Text has one field, `source`: the tokens before the sequence. `config` is the whole
        config.json.
        """
        del config
        return {}

    def manifest(
        self,
        config: Mapping[str, Any],
        model: nn.Module,
        *,
        target: str,
        precision: str,
        graphs: Sequence[GraphSpec] = (),
        decoding: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """The manifest of a checkpoint; `config` is the whole config.json."""
        start = config.get("start_ids")
        shape = {key: value for key, value in config["model"].items() if value is not None}
        # Tied weights count once: parameters() does not repeat them.
        shape["num_parameters"] = sum(item.numel() for item in model.parameters())
        return Manifest(
            family=config["family"],
            model=shape,
            vocab_size=config["vocab_size"],
            precision=precision,
            target=target,
            graphs=tuple(graphs),
            decoding=dict(decoding or {}),
            provenance=dict(provenance or {}),
            mask_token_id=config["mask_token_id"] if self.has_mask else None,
            eos_token_id=config["eos_token_id"],
            pad_token_id=config["pad_token_id"],
            start_ids=None if start is None else tuple(start),
            end_ids=tuple(config.get("end_ids") or ()),
            logit_shift=config.get("logit_shift", self.logit_shift),
            max_position=config["model"]["context"],
            block_sizes=tuple(config["block_sizes"]),
            noise_schedule=dict(config["noise_schedule"]),
        )
