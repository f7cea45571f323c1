"""Every kind of graph that we export, through the parser and the builder of a real TensorRT.

TensorRT-RTX's rules are a newer TensorRT's: what 10.3 refuses beyond them is
`export/onnx_graph/lint.py`'s business. What runs on the plan's GPU is not tried here.
"""

from functools import cache, partial

import numpy as np
import pytest
import torch
from dlm_edge.calibration.forms.board import BoardForm
from dlm_edge.calibration.forms.float16 import narrow_cache, store_fp16, type_fp16
from dlm_edge.calibration.forms.qdq import ZERO, quantize
from dlm_edge.calibration.layers import find_layers
from dlm_edge.export.onnx_graph.lint import require_clean
from dlm_edge.export.onnx_graph.trace import trace
from dlm_edge.export.onnx_graph.weights import split_weights
from dlm_edge.runtime.engines.tensorrt_build import BuildSettings, build_plan
from dlm_edge.runtime.errors import EngineError
from dlm_edge.train.families import FAMILIES
from small_graphs import set_weight

pytestmark = [
    pytest.mark.trt,
    # Timing caches are a full TensorRT's.
    pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX"),
]

BLOCK, CONTEXT = 4, 16
MODEL = {"dim": 64, "num_layers": 1, "num_heads": 2, "vocab_size": 258, "context": CONTEXT}
MASKED = {"mask_token_id": 1, "block_sizes": f"{BLOCK},full"}
DRAFTS = {"mask_token_id": 1, "block_sizes": "2"}
QWEN2 = {"backbone": "qwen2", "num_heads": 4, "num_kv_heads": 2}
PARTS = {"tidar in parts": 0, "tidar's head": 1}
"""Variants that are a part of a graph: its place among them."""
VARIANTS = {
    "mdlm": ("mdlm", MASKED),
    "mdlm tied": ("mdlm", {**MASKED, "tie_embeddings": True}),
    "mdlm timed": ("mdlm", {**MASKED, "time_conditioning": True}),
    "ar": ("ar", {}),
    "sedd uniform": ("sedd", {**MASKED, "graph": "uniform"}),
    "tidar qwen2 tied": ("tidar", {**DRAFTS, **QWEN2, "tie_embeddings": True}),
    "tidar qwen3": ("tidar", {**DRAFTS, **QWEN2, "backbone": "qwen3"}),
    "tidar in parts": ("tidar", {**DRAFTS, **QWEN2, "tie_embeddings": True}),
    "tidar's head": ("tidar", {**DRAFTS, **QWEN2, "tie_embeddings": True}),
    "sedd absorb": ("sedd", {**MASKED, "graph": "absorb", "tie_embeddings": True}),
    "dimba": ("dimba", MASKED),
    "dimba guided": ("dimba", {**MASKED, "prediction": "v", "prompt_encoder": True}),
}
STEPS = {"dimba": "denoise", "dimba guided": "guided"}
"""Variants of families with several graphs: the one to build."""


def quantised(model, precision=None, mixed=False, outliers=()):
    """Q/DQ as the recipe says, then float16; `precision` is given to every layer that can have it.

    `mixed` leaves every other layer in floating point, as a budget may.
    """
    layers = find_layers(model, {"ids": "canvas", "time": "time"})
    recipe = BoardForm().default_recipe(layers, "int8")
    for number, layer in enumerate(layers):
        if mixed and number % 2:
            recipe = recipe.with_layer(layer.name, precision="float")
        if precision in layer.precisions:
            recipe = recipe.with_layer(layer.name, precision=precision)
        apart = tuple(channel for channel in outliers if channel < layer.num_inputs)
        recipe = recipe.with_layer(layer.name, scale=0.03, outliers=apart)
    made = quantize(model, layers, recipe)
    type_fp16(made)
    require_clean(made, "denoise")
    return made


def with_int4(model):
    """What `pack` writes of an int4 graph for a board."""
    layers = find_layers(model, {"ids": "canvas", "time": "time"})
    form = BoardForm()
    recipe, items = form.default_recipe(layers, "int4"), model.graph.initializers
    grids = {}
    for layer in layers:
        if recipe.layers[layer.name].precision == "int4":
            matrix = layer.by_channel(items[layer.weight].const_value.numpy()).T
            grids[layer.name] = form.make_grid(matrix, None)
        recipe = recipe.with_layer(layer.name, scale=0.03)
    assert grids or len(layers) == 1  # a head alone has none
    made = quantize(model, layers, recipe, grids)
    type_fp16(made)
    return narrowed(made)


def with_large_values(model):
    """A product and what follows it, kept in float32 as if they left float16's range."""
    products = [node.outputs[0].name for node in model.graph if node.op_type == "MatMul"]
    return with_half(model, products[-2:-1])


def with_half_cache(model):
    """As for a board: float16 where the cache enters and leaves."""
    return narrowed(with_half(model))


def as_shipped(model, mixed=False, outliers=()):
    """What `pack` writes of every int8 graph for a board."""
    return narrowed(quantised(model, mixed=mixed, outliers=outliers))


def narrowed(model):
    """Makes the cache float16, where there is one."""
    if any(value.name == "kv" for value in model.graph.inputs):
        assert narrow_cache(model, "kv", "kv_new")
    require_clean(model, "denoise")
    return model


def with_half(model, float32=()):
    type_fp16(model, float32=float32)
    return model


def stored_half(model):
    store_fp16(model)
    return model


CONVERSIONS = {
    "fp32": lambda model: model,
    "fp16 stored": stored_half,
    "fp16 typed": with_half,
    "fp16 typed, float16 cache": with_half_cache,
    "fp16 typed with large values": with_large_values,
    "int8": quantised,
    "int8, float16 cache": as_shipped,
    "int8 and float, float16 cache": partial(as_shipped, mixed=True),
    "int8, outliers": partial(as_shipped, outliers=(1, 5, 9)),
    "int4": with_int4,
    "int8 head": partial(quantised, precision="int8"),
    "int8 weights": partial(quantised, precision="int8-weight"),
}


@cache
def traced(variant):
    name, options = VARIANTS[variant]
    torch.manual_seed(0)
    family = FAMILIES[name]
    config = family.make_config({**MODEL, "eos_token_id": 0, "pad_token_id": None, **options})
    graphs = family.graphs(family.make_model(config["model"]).eval(), config)
    graph = next(g for g in graphs if g.name == STEPS.get(variant, graphs[0].name))
    if variant in PARTS:
        graph = graph.parts[PARTS[variant]]
    return graph, trace(graph, {"batch": 1, "rows": BLOCK, "context": CONTEXT})


@pytest.mark.parametrize("precision", CONVERSIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_one_plan_holds_every_shape(trt, configure, tmp_path, variant, precision):
    graph, model = traced(variant)
    split_weights({graph.name: CONVERSIONS[precision](model.clone())}, tmp_path)
    file = f"{graph.name}.onnx"
    shapes = graph.shapes(() if "tidar" in variant else (BLOCK,), ())
    specs = graph.specs(shapes, precision=precision[:4])
    plan = build_plan(
        trt, tmp_path / file, specs, BuildSettings(optimization_level=0), configure=configure
    )
    weights = (tmp_path / f"{graph.name}.weights").stat().st_size
    assert plan.data.nbytes >= weights / 2


def test_a_quantised_graph_that_breaks_the_rules_is_rejected(trt, configure, tmp_path):
    """The gate can fail: zero points other than 0 are refused by the parser."""
    graph, model = traced("mdlm")
    model = quantised(model)
    set_weight(model, ZERO, np.array(3, np.int8))
    split_weights({graph.name: model}, tmp_path)
    file = f"{graph.name}.onnx"
    specs = graph.specs(graph.shapes((BLOCK,), ()), precision="int8")
    with pytest.raises(EngineError, match="zero point"):
        build_plan(trt, tmp_path / file, specs, BuildSettings(), configure=configure)
