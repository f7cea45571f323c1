"""What calibration asks of a form, that is, of the way a target's graphs are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import onnx_ir as ir

from ..layers import WeightLayer
from ..recipe import GraphRecipe

Cache = Sequence[tuple[str, str]]
"""Pairs of a graph's cache tensors: an input, and the output that is appended to it."""


class Form(Protocol):
    """How fp16 and int8 are written into a float32 graph. Graphs that are given stay unchanged."""

    @property
    def dynamic(self) -> bool:
        """Whether each run takes its own scales of activations, so that a recipe has none."""
        ...

    def default_recipe(self, layers: Sequence[WeightLayer]) -> GraphRecipe:
        """Returns what every layer becomes before any measurement."""
        ...

    def half_values(self, model: ir.Model) -> tuple[str, ...]:
        """Returns the values that would be float16; none where arithmetic stays float32."""
        ...

    def fp16(self, model: ir.Model, float32: Sequence[str], cache: Cache) -> ir.Model:
        """Returns the fp16 graph.

        Args:
            model: Float32.
            float32: Values to keep in float32.
            cache: The graph's cache tensors.

        Raises:
            ConfigError: A weight is beyond float16's range.
        """
        ...

    def int8(
        self, model: ir.Model, layers: Sequence[WeightLayer], recipe: GraphRecipe, cache: Cache
    ) -> ir.Model:
        """Returns the int8 graph.

        Args:
            model: Float32, smoothed if the recipe's alphas say so.
            layers: What `find_layers` found in it.
            recipe: Names every layer.
            cache: The graph's cache tensors.

        Raises:
            CalibrationError: A scale that this form needs is missing, or one that it cannot have
                is given.
        """
        ...
