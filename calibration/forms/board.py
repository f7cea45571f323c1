"""The form for GPUs: typed graphs, with float16 arithmetic and Q/DQ written into the ONNX.

| precision | graph |
|---|---|
| fp16 | float16 weights, arithmetic and cache; norm statistics, softmax, angles float32 |
| int8 | the same, with Q/DQ around the linear layers |
| int8, outliers | the same without these channels, and a float16 product of them alone, added |
| int4 | a blocked DequantizeLinear behind a matrix of signed 4 bits; the product is float16 |
| int8-weight | a DequantizeLinear behind the int8 matrix; the product is float16 |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..grids import NO_GRIDS, Grid, board_group, round_to_grid
from ..layers import WeightLayer
from ..recipe import GraphRecipe, LayerRecipe
from .base import Cache
from .float16 import half_values, narrow_cache, type_fp16
from .qdq import quantize


@dataclass(frozen=True, slots=True)
class BoardForm:
    """Typed graphs."""

    dynamic = False

    def default_recipe(self, layers: Sequence[WeightLayer], precision: str) -> GraphRecipe:
        """Embeddings and heads are stored as int8 and computed in floating point: a head's error
        goes straight into the logits, and at these block sizes its weights' bytes are what costs.
        """
        recipes = {}
        for layer in layers:
            if not layer.quantizable:
                recipes[layer.name] = LayerRecipe(precision="float", reason="conditioning")
            elif layer.head or layer.kind != "linear":
                recipes[layer.name] = LayerRecipe(precision="int8-weight")
            else:
                chosen = "int4" if precision == "int4" and self.takes_int4(layer) else "int8"
                recipes[layer.name] = LayerRecipe(precision=chosen)
        return GraphRecipe(layers=recipes)

    def find_grid(self, matrix: np.ndarray) -> Grid | None:
        del matrix  # files have smaller groups
        return None

    def make_grid(self, matrix: np.ndarray, moments: np.ndarray | None) -> Grid:
        size = board_group(matrix.shape[1])
        assert size is not None
        return round_to_grid(matrix, moments, size=size, symmetric=True)

    def takes_int4(self, layer: WeightLayer) -> bool:
        return layer.fits_grid and board_group(layer.num_inputs) is not None

    def half_values(self, model: ir.Model) -> tuple[str, ...]:
        return half_values(model)

    def fp16(self, model: ir.Model, float32: Sequence[str], cache: Cache) -> ir.Model:
        return _typed(model.clone(), float32, cache)

    def quantised(
        self,
        model: ir.Model,
        layers: Sequence[WeightLayer],
        recipe: GraphRecipe,
        cache: Cache,
        grids: Mapping[str, Grid] = NO_GRIDS,
    ) -> ir.Model:
        return _typed(quantize(model, layers, recipe, grids), recipe.float32, cache)


def _typed(model: ir.Model, float32: Sequence[str], cache: Cache) -> ir.Model:
    """Types a graph, in place.

    On a board a step reads the cache beside the weights, at full context about as much as a fifth
    of them (12 layers of 768, 512 positions); in float32 it would be twice that.
    """
    type_fp16(model, float32)
    for kv, kv_new in cache:
        narrow_cache(model, kv, kv_new)
    return model
