"""The desktop-side seam: what a family must say about training and export, and nothing else.

A family = one module with its config, denoiser, objective and graphs, and one line in
`families/__init__.py`. The training loop, exporter and calibrator know no family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphTensor:
    """One input or output of an exported graph, in symbols."""

    name: str
    dtype: str
    """NumPy name."""
    shape: tuple[int | str, ...]
    """Integers, or the symbolic dimensions "block" and "context"."""
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportGraph:
    """One graph that export traces: module, and its inputs and outputs in forward's order."""

    name: str
    module: nn.Module
    """Its forward takes the inputs positionally and returns the outputs as a tuple."""
    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]


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

    def make_model(self, config: Mapping[str, Any]) -> nn.Module:
        """Builds the denoiser from the `model` part of a checkpoint's config.json."""
        ...

    def loss(
        self, model: nn.Module, ids: torch.Tensor, generator: torch.Generator, config: Any
    ) -> LossOutput:
        """The objective on clean ids (B, L) int64; all randomness comes from `generator`."""
        ...

    def graphs(self, model: nn.Module, config: Mapping[str, Any]) -> Sequence[ExportGraph]:
        """The graphs to export, in evaluation mode."""
        ...

    def manifest_fields(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Family-dependent fields of the manifest (mask id, logit_shift, noise schedule, …)."""
        ...
