"""The form for GPUs: typed graphs, with float16 arithmetic and Q/DQ written into the ONNX.

| precision | graph |
|---|---|
| fp16 | float16 weights, arithmetic and cache; norm statistics, softmax, angles float32 |
| int8 | the same, with Q/DQ around the linear layers |
| int8-weight | a DequantizeLinear behind the int8 matrix; the product is float16 |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ..grids import NO_GRIDS, Grid
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
        del precision  # int4 is for CPUs
        recipes = {}
        for layer in layers:
            if not layer.quantizable:
                recipes[layer.name] = LayerRecipe(precision="float", reason="conditioning")
            elif layer.head or layer.kind != "linear":
                recipes[layer.name] = LayerRecipe(precision="int8-weight")
            else:
                recipes[layer.name] = LayerRecipe(precision="int8")
        return GraphRecipe(layers=recipes)

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
        del grids
        return _typed(quantize(model, layers, recipe), recipe.float32, cache)


def _typed(model: ir.Model, float32: Sequence[str], cache: Cache) -> ir.Model:
    """Types a graph, in place.

    On a board a step reads the cache beside the weights, at full context about as much as a fifth
    of them (12 layers of 768, 512 positions); in float32 it would be twice that.
    """
    type_fp16(model, float32)
    for kv, kv_new in cache:
        narrow_cache(model, kv, kv_new)
    return model
