"""What calibration asks of a form, that is, of the way a target's graphs are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import onnx_ir as ir

from ..grids import NO_GRIDS, Grid
from ..layers import WeightLayer
from ..recipe import GraphRecipe

Cache = Sequence[tuple[str, str]]
"""Pairs of a graph's cache tensors: an input, and the output that is appended to it."""


class Form(Protocol):
    """How precisions are written into a float32 graph. Graphs that are given stay unchanged."""

    @property
    def dynamic(self) -> bool:
        """Whether each run takes its own scales of activations, so that a recipe has none."""
        ...

    def default_recipe(self, layers: Sequence[WeightLayer], precision: str) -> GraphRecipe:
        """Returns what every layer becomes before any measurement, for int8 or int4."""
        ...

    def find_grid(self, matrix: np.ndarray) -> Grid | None:
        """Returns the grid that a matrix (outputs, inputs) is on, if int4 can hold it as it is."""
        ...

    def make_grid(self, matrix: np.ndarray, moments: np.ndarray | None) -> Grid:
        """Rounds a matrix to int4; arguments of `round_to_grid`."""
        ...

    def takes_int4(self, layer: WeightLayer) -> bool:
        """Returns whether a layer can be int4."""
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

    def quantised(
        self,
        model: ir.Model,
        layers: Sequence[WeightLayer],
        recipe: GraphRecipe,
        cache: Cache,
        grids: Mapping[str, Grid] = NO_GRIDS,
    ) -> ir.Model:
        """Returns the graph of a recipe.

        Args:
            model: Float32, smoothed if the recipe's alphas say so.
            layers: What `find_layers` found in it.
            recipe: Names every layer.
            cache: The graph's cache tensors.
            grids: By layer, of those that are int4.

        Raises:
            CalibrationError: A scale that this form needs is missing, or one that it cannot have
                is given.
        """
        ...
