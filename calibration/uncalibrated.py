"""int8 without any text: weights are rounded, nothing is fitted to activations or measured.

On a CPU each run takes its own scales of activations, so that only their smoothing is lost. A
board's scales are fixed, which takes canvases to fit; without them the weights alone are stored as
int8 and products are computed in float16, which is half of fp16's memory and traffic at its speed
of arithmetic. Graphs are made one after the other, the float32 one let go of, so that memory is
that of one.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx

from ..runtime.bundle.manifest import Manifest
from .scales.calibrate import Recipe
from .scales.linears import find_layers
from .scales.plan import GraphPlan, Plan


def round_weights(
    models: dict[str, onnx.ModelProto],
    manifest: Manifest,
    recipe: Recipe,
    progress: Callable[[str], None],
) -> Plan:
    """Replaces float32 graphs by int8 ones, in place.

    Args:
        models: By name.
        manifest: Has the roles of their inputs.
        recipe: Of the target.
        progress: Told each graph.

    Returns:
        What became of each layer.
    """
    graphs: dict[str, GraphPlan] = {}
    for name in list(models):
        spec = next(spec for spec in manifest.graphs if spec.name == name)
        roles = {tensor.name: tensor.role for tensor in spec.inputs}
        layers = find_layers(models[name], roles)
        plan = recipe.default_plan(layers)
        if not recipe.dynamic:
            plan = _weights_only(plan)
        progress(f"rounding {len(layers)} layers of {name} to int8")
        models[name] = recipe.build(models[name], layers, plan)
        graphs[name] = plan
    return Plan(target=recipe.target, graphs=graphs)


def _weights_only(plan: GraphPlan) -> GraphPlan:
    """Takes back the int8 activations of a plan, whose scales nothing has been fitted to."""
    for name, layer in plan.layers.items():
        if layer.precision == "int8":
            plan = plan.with_layer(name, precision="int8-weight", reason="uncalibrated")
    return plan
