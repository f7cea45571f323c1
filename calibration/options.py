"""What a quantised bundle is made with, and what was measured on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.measure.judge import Judge
from .canvases.canvases import CanvasSet
from .graphs import Models
from .losses.budget import LayerCost, Outcome, TableTrial
from .losses.loss import LossText, Ratio
from .losses.quality import VariantFigures
from .recipe import Recipe

SETS = {"decode": "canvases of decoding", "clean": "clean text", "noise": "random noise"}
"""What scales can be calibrated on; the first is what the others are compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisationOptions:
    """What a quantised bundle is made with."""

    precision: str
    """fp16, int8 or int4."""
    target: str
    max_loss: float
    """Share of perplexity that may be lost."""
    num_tokens: int
    """Held-out tokens to measure on, at most."""
    edits: Mapping[str, Any] | None
    """An edited recipe; None: all is decided here."""
    force: bool
    """Whether to go on when the budget cannot be met."""
    judge: Judge | None
    canvases: Path | None
    """File of canvases to read, or to write if it is not there; None: none are kept."""
    seed: int
    brief: bool = False
    """Whether to measure only what decides about the graphs: one set of canvases, and no precision
    but the one asked for. Good enough to compare block sizes and precisions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """The graphs, with all that was measured on the way."""

    models: Models
    recipe: Recipe
    outcome: Outcome
    variants: Mapping[str, VariantFigures]
    """fp32, fp16, and int8 or int4 if that is what ships."""
    comparison: Mapping[str, VariantFigures]
    """The same before the budget, calibrated on each set; none with an edited recipe."""
    against_decoding: Mapping[str, Ratio]
    """Perplexity of each other set's graphs over that of those calibrated on decoding."""
    failures: Mapping[str, str]
    """Sets that gave no scales, and why."""
    calibrated_on: str
    """A name of SETS; empty for fp16."""
    costs: tuple[LayerCost, ...]
    tables: tuple[TableTrial, ...]
    """Embeddings and heads, each quantised alone."""
    sets: Mapping[str, CanvasSet]
    largest: Mapping[str, Mapping[str, Mapping[int, float]]]
    """What enters each layer of what ships, by tenth of the mask ratio."""
    texts: tuple[LossText, ...]
    """The held-out text by block size; the first is what decoding takes unless asked."""
    masked: bool
    """Whether noise masks tokens; else it replaces them."""
    num_samples: int
    """Masks per window of the text."""
    num_decodes: int
