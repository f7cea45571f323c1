"""From canvases to scales: folds, chooses ranges, and builds the graphs that a plan asks for.

One `Calibrator` holds a model's floating-point graphs and a target's recipe. `fit` turns a set of
canvases into a `Fitted`: smoothed graphs, and the plan with every alpha and scale filled in. From
there a plan's layers can be switched between int8 and floating point without looking at canvases
again, which is what the sensitivity pass and the budget do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx
from onnx import numpy_helper

from ..canvases.canvases import CanvasSet
from .activations import Activation, collect, layer_inputs
from .bench import Models
from .linears import Layer, find_layers
from .plan import GraphPlan, Plan, fixed_scale
from .ranges import Range, choose_range
from .smooth import asked_folds, search_alphas, smooth

Progress = Callable[[int, int], None]
Layers = tuple[Layer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one target's graphs are made; the exporter has one per kind of target."""

    target: str
    default_plan: Callable[[Layers], GraphPlan]
    """What every layer becomes if nothing speaks against it."""
    build: Callable[[onnx.ModelProto, Layers, GraphPlan], onnx.ModelProto]
    """Makes the planned graph of a float32 one, which it leaves as it is."""
    build_fp16: Callable[[onnx.ModelProto, Sequence[str]], onnx.ModelProto]
    """Makes the fp16 graph; the names are values to keep in float32."""
    half_values: Callable[[onnx.ModelProto], tuple[str, ...]]
    """Names the values that would be float16; none where arithmetic stays float32."""
    weight_limit: int = 127
    """Largest integer of a weight; 64 leaves a bit to kernels that saturate."""
    dynamic: bool = False
    """Whether each run takes its own scales of activations, so that a plan has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What one set of canvases led to."""

    plan: Plan
    """With alphas and scales."""
    models: Models
    """Float32, smoothed as the plan says."""


class Calibrator:
    """The floating-point graphs of one model, ready to be quantised for one target."""

    def __init__(
        self, models: Models, roles: Mapping[str, Mapping[str, str]], recipe: Recipe
    ) -> None:
        """Takes float32 graphs by name, and the roles of each one's inputs."""
        self.models = models
        self.recipe = recipe
        self.layers: dict[str, Layers] = {
            name: find_layers(model, roles[name]) for name, model in models.items()
        }

    def default_plan(self, float32: Mapping[str, tuple[str, ...]]) -> Plan:
        """Returns the recipe's plan for every layer.

        Args:
            float32: Values of each graph that leave float16's range.
        """
        graphs = {
            name: replace(self.recipe.default_plan(layers), float32=float32.get(name, ()))
            for name, layers in self.layers.items()
        }
        return Plan(target=self.recipe.target, graphs=graphs)

    def require_possible(self, plan: Plan) -> None:
        """Raises CalibrationError for alphas and scales that no graph of this recipe can have."""
        for graph, model in self.models.items():
            layers = plan.graphs[graph].layers
            alphas = {name: layer.alpha for name, layer in layers.items()}
            asked_folds(model, self.layers[graph], alphas)
            for name, layer in layers.items():
                if self.recipe.dynamic and layer.scale is not None:
                    raise fixed_scale(name, layer.scale)

    def fit(
        self, plan: Plan, canvases: CanvasSet, progress: Progress = lambda done, total: None
    ) -> Fitted:
        """Fills in alphas and scales that the plan leaves open.

        Args:
            plan: Its own alphas and scales are kept; a scale without an alpha is one of the
                unfolded input.
            canvases: To observe activations on.
            progress: Told after every canvas.

        Raises:
            CalibrationError: Activations that cannot be quantised, NaN on a canvas.
        """
        rounds = 1 if self.recipe.dynamic else 2
        done, total = 0, rounds * len(canvases)

        def step(_: int, __: int) -> None:
            nonlocal done
            done += 1
            progress(done, total)

        models = {}
        for graph, model in self.models.items():
            layers = self.layers[graph]
            names = layer_inputs(layer for layer in layers if layer.quantizable)
            if not names:
                models[graph] = model
                continue
            seen = collect(model, canvases.items, names, graph=graph, progress=step)
            plan = self._with_alphas(plan, graph, seen)
            alphas = {name: item.alpha for name, item in plan.graphs[graph].layers.items()}
            models[graph] = smooth(model, layers, seen, alphas)
            if not self.recipe.dynamic:
                seen = collect(models[graph], canvases.items, names, graph=graph, progress=step)
                plan = self._with_scales(plan, graph, models[graph], seen)
        return Fitted(plan=plan, models=models)

    def largest(
        self,
        fitted: Fitted,
        canvases: CanvasSet,
        progress: Progress = lambda done, total: None,
    ) -> dict[str, dict[str, dict[int, float]]]:
        """Measures the largest magnitude that enters each layer.

        Returns:
            Graph → layer → tenth of the mask ratio → magnitude, after folding.
        """
        found: dict[str, dict[str, dict[int, float]]] = {}
        for graph, model in fitted.models.items():
            layers = [layer for layer in self.layers[graph] if layer.quantizable and layer.inputs]
            names = layer_inputs(layers)
            if not names:
                found[graph] = {}
                continue
            seen = collect(model, canvases.items, names, graph=graph, progress=progress)
            found[graph] = {
                layer.name: dict(seen[layer.inputs[0]].max_by_decile) for layer in layers
            }
        return found

    def _with_alphas(self, plan: Plan, graph: str, seen: Mapping[str, Activation]) -> Plan:
        """Fills in how strongly each layer's input is folded; what the plan says stays.

        A scale without an alpha was fitted to what enters unfolded, so that neither its layer nor
        those that share its input are searched.
        """
        layers = plan.graphs[graph].layers
        said = {
            value
            for layer in self.layers[graph]
            if layers[layer.name].alpha is not None or layers[layer.name].scale is not None
            for value in layer.inputs
        }
        found = search_alphas(
            self.models[graph],
            self.layers[graph],
            seen,
            weight_limit=self.recipe.weight_limit,
            dynamic=self.recipe.dynamic,
        )
        for layer in self.layers[graph]:
            if layers[layer.name].alpha is None and said.isdisjoint(layer.inputs):
                plan = plan.with_layer(graph, layer.name, alpha=found[layer.name])
        return plan

    def _with_scales(
        self, plan: Plan, graph: str, model: onnx.ModelProto, seen: Mapping[str, Activation]
    ) -> Plan:
        """Chooses a range for each value that enters int8 products; what the plan says stays."""
        arrays = {item.name: item for item in model.graph.initializer}
        chosen: dict[str, Range] = {}
        for layer in self.layers[graph]:
            what = plan.graphs[graph].layers[layer.name]
            if what.precision != "int8":
                continue
            if what.scale is not None:
                plan = plan.with_layer(graph, layer.name, observer=what.observer or "plan")
                continue
            for value in layer.inputs:
                if value not in chosen:
                    weights = [
                        other.by_channel(numpy_helper.to_array(arrays[other.weight]))
                        for other in self.layers[graph]
                        if value in other.inputs
                    ]
                    chosen[value] = choose_range(seen[value], weights, label=layer.name)
            widest = max((chosen[value] for value in layer.inputs), key=lambda item: item.scale)
            plan = plan.with_layer(graph, layer.name, scale=widest.scale, observer=widest.observer)
        return plan

    def build(self, fitted: Fitted, plan: Plan) -> dict[str, onnx.ModelProto]:
        """Makes the graphs of a plan whose scales come from `fitted`."""
        return {
            name: self.recipe.build(model, self.layers[name], plan.graphs[name])
            for name, model in fitted.models.items()
        }

    def build_fp16(self, plan: Plan) -> dict[str, onnx.ModelProto]:
        """Makes the fp16 graphs."""
        return {
            name: self.recipe.build_fp16(model, plan.graphs[name].float32)
            for name, model in self.models.items()
        }
