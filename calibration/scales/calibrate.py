"""From canvases to scales: folds, chooses ranges, and makes the graphs that a recipe asks for.

One `Calibrator` holds a model's floating-point graphs and their target's form. `fit` turns a set of
canvases into a `Fitted`: smoothed graphs, and the recipe with every alpha and scale filled in. From
there a recipe's layers can be switched between int8 and floating point without looking at canvases
again, which is what the sensitivity pass and the budget do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ...runtime.bundle.manifest import GraphSpec
from ...runtime.errors import CalibrationError
from ..canvases.canvases import CanvasSet
from ..forms.base import Cache, Form
from ..forms.cpu import fixed_scale
from ..graphs import Models, array_of
from ..grids import Grid
from ..layers import WeightLayer, find_layers
from ..recipe import Recipe
from .activations import Activation, collect, layer_inputs, second_moments
from .outliers import choose_outliers
from .products import Products
from .ranges import Range, choose_range
from .smooth import asked_folds, search_alphas, smooth

Progress = Callable[[int, int], None]
Layers = tuple[WeightLayer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What one set of canvases led to."""

    recipe: Recipe
    """With alphas and scales."""
    models: Models
    """Float32, smoothed as the recipe says."""
    grids: Mapping[str, Mapping[str, Grid]]
    """By graph and layer, of those that are int4."""


class Calibrator:
    """The floating-point graphs of one model, ready to be quantised for one target."""

    def __init__(
        self,
        models: Models,
        specs: Iterable[GraphSpec],
        form: Form,
        target: str,
        precision: str = "int8",
    ) -> None:
        """Takes float32 graphs by name, one spec or more of each, and their target's form."""
        self.models, self.form, self._target, self._precision = models, form, target, precision
        known = {spec.name: spec for spec in specs}
        roles = {name: {item.name: item.role for item in known[name].inputs} for name in models}
        self.layers: dict[str, Layers] = {
            name: find_layers(model, roles[name]) for name, model in models.items()
        }
        self._caches = {name: _cache_of(known[name]) for name in models}
        self._seen: tuple[CanvasSet | None, dict[str, Mapping[str, Activation]]] = (None, {})
        """What enters layers on the canvases used last, by graph."""

    def default_recipe(self, float32: Mapping[str, tuple[str, ...]]) -> Recipe:
        """Returns what every layer becomes before any measurement.

        Args:
            float32: Values of each graph that leave float16's range.

        Raises:
            CalibrationError: int4 is asked for, and no layer can have it.
        """
        graphs = {
            name: replace(
                self.form.default_recipe(layers, self._precision), float32=float32.get(name, ())
            )
            for name, layers in self.layers.items()
        }
        recipe = Recipe(target=self._target, graphs=graphs)
        found = {layer.precision for _, _, layer in recipe.layers()}
        if self._precision == "int4" and "int4" not in found:
            raise CalibrationError(
                f"no layer can be int4 for {self._target}: none has inputs that make whole groups "
                "of it; choose int8"
            )
        return recipe

    def weights_only(self) -> Fitted:
        """Returns what graphs become that nothing was recorded for.

        Scales that each run takes need no canvases; only smoothing is lost. Fixed ones do, so
        where these are needed weights alone are stored as int8, and products are float16: half of
        fp16's memory and traffic at its speed of arithmetic.
        """
        recipe = self.default_recipe({})
        for graph, name, layer in recipe.layers():
            if not self.form.dynamic and layer.precision == "int8":
                recipe = recipe.with_layer(
                    graph, name, precision="int8-weight", reason="uncalibrated"
                )
        grids = {graph: self._grids(recipe, graph, model) for graph, model in self.models.items()}
        return Fitted(recipe=recipe, models=self.models, grids=grids)

    def require_possible(self, recipe: Recipe) -> None:
        """Raises CalibrationError for alphas and scales that no graph of this recipe can have."""
        for graph, model in self.models.items():
            layers = recipe.graphs[graph].layers
            alphas = {name: layer.alpha for name, layer in layers.items()}
            asked_folds(model, self.layers[graph], alphas)
            small = {item.name for item in self.layers[graph] if self.form.takes_int4(item)}
            looked_up = {layer.name for layer in self.layers[graph] if layer.lookups}
            for name, layer in layers.items():
                if self.form.dynamic and layer.scale is not None:
                    raise fixed_scale(name, layer.scale)
                if layer.precision == "int4" and name not in small:
                    raise CalibrationError(
                        f"layer {name} of the recipe is int4, but its inputs make no whole groups "
                        f"as graphs for {self._target} have them: choose int8"
                    )
                if layer.outliers and not self.form.dynamic and name in looked_up:
                    raise CalibrationError(
                        f"layer {name} of the recipe has outliers, but its matrix is an embedding, "
                        f'too, which graphs for {self._target} store whole: remove "outliers"'
                    )

    def fit(
        self,
        recipe: Recipe,
        canvases: CanvasSet,
        progress: Progress = lambda done, total: None,
        *,
        outliers: float | None = None,
    ) -> Fitted:
        """Fills in alphas and scales that the recipe leaves open.

        Args:
            recipe: Its own alphas, scales and outliers are kept; a scale or outliers without an
                alpha are those of the unfolded input.
            outliers: Slack (of SLACKS) in the number of large channels that are kept in floating
                point beside int8 products; nothing is folded then, since what folding spreads is
                taken out. None: none are.

        Raises:
            CalibrationError: Activations that cannot be quantised, NaN on a canvas.
        """
        rounds = 1 if self.form.dynamic else 2
        done, total = 0, rounds * len(canvases)

        def step(_: int, __: int) -> None:
            nonlocal done
            done += 1
            progress(done, total)

        models, grids = {}, {}
        for graph, model in self.models.items():
            layers = self.layers[graph]
            names = layer_inputs(layer for layer in layers if layer.quantizable)
            grids[graph] = {}
            if not names:
                models[graph] = model
                continue
            seen = self._seen_on(canvases, graph, step)
            if outliers is not None:
                recipe = self._with_outliers(recipe, graph, seen, outliers)
            else:
                recipe = self._with_alphas(recipe, graph, seen)
            alphas = {name: item.alpha for name, item in recipe.graphs[graph].layers.items()}
            models[graph] = smooth(model, layers, seen, alphas)
            if not self.form.dynamic:
                seen = collect(
                    models[graph],
                    canvases.items,
                    names,
                    graph=graph,
                    apart=self._apart(recipe, graph),
                    progress=step,
                )
                recipe = self._with_scales(recipe, graph, models[graph], seen)
            grids[graph] = self._grids(recipe, graph, models[graph], canvases)
        return Fitted(recipe=recipe, models=models, grids=grids)

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
            alphas = [item.alpha for item in fitted.recipe.graphs[graph].layers.values()]
            if not any(alphas):  # nothing is folded
                seen = self._seen_on(canvases, graph, progress)
            else:
                seen = collect(model, canvases.items, names, graph=graph, progress=progress)
            found[graph] = {
                layer.name: dict(seen[layer.inputs[0]].max_by_decile) for layer in layers
            }
        return found

    def costliest(
        self, fitted: Fitted, canvases: CanvasSet, recipe: Recipe, count: int
    ) -> list[tuple[str, str]]:
        """Returns graph and name of the quantised layers whose products lose most.

        Args:
            canvases: What products are computed on.
            recipe: Layers it has in floating point are left out.
            count: So many at most; layers without a product, whose loss is not known, come first.
        """
        lost: dict[tuple[str, str], float] = {}
        for graph, layers in self.layers.items():
            items, seen = self.models[graph].graph.initializers, self._seen_on(canvases, graph)
            for layer in layers:
                what = recipe.graphs[graph].layers[layer.name]
                if what.precision == "float":
                    continue
                if not layer.inputs or layer.inputs[0] not in seen:
                    lost[graph, layer.name] = np.inf
                    continue
                products = Products(
                    seen[layer.inputs[0]], [layer.by_channel(array_of(items[layer.weight]))]
                )
                lost[graph, layer.name] = (
                    products.change([fitted.grids[graph][layer.name].values().T])
                    if what.precision == "int4"
                    else products.error(dynamic=self.form.dynamic, outliers=what.outliers)
                )
        return sorted(lost, key=lambda key: -lost[key])[:count]

    def _seen_on(
        self, canvases: CanvasSet, graph: str, progress: Progress = lambda done, total: None
    ) -> Mapping[str, Activation]:
        """Returns what enters a graph's layers, unfolded; it is kept until other canvases come."""
        if self._seen[0] is not canvases:
            self._seen = (canvases, {})
        kept = self._seen[1]
        if graph not in kept:
            names = layer_inputs(layer for layer in self.layers[graph] if layer.quantizable)
            kept[graph] = (
                collect(self.models[graph], canvases.items, names, graph=graph, progress=progress)
                if names
                else {}
            )
        return kept[graph]

    def _with_alphas(self, recipe: Recipe, graph: str, seen: Mapping[str, Activation]) -> Recipe:
        """Fills in how strongly each layer's input is folded; what the recipe says stays.

        A scale or outliers without an alpha were chosen for what enters unfolded, so that neither
        this layer nor those that share its input are searched.
        """
        layers = recipe.graphs[graph].layers
        said = {
            value
            for layer in self.layers[graph]
            for what in (layers[layer.name],)
            if what.alpha is not None or what.scale is not None or what.outliers
            for value in layer.inputs
        }
        found = search_alphas(
            self.models[graph],
            self.layers[graph],
            seen,
            dynamic=self.form.dynamic,
        )
        for layer in self.layers[graph]:
            if layers[layer.name].alpha is None and said.isdisjoint(layer.inputs):
                recipe = recipe.with_layer(graph, layer.name, alpha=found[layer.name])
        return recipe

    def _with_outliers(
        self, recipe: Recipe, graph: str, seen: Mapping[str, Activation], slack: float
    ) -> Recipe:
        """Fills in which channels of int8 products stay in floating point; what the recipe says
        stays.

        Those of int4 are for the case that the budget makes them int8.
        """
        found = choose_outliers(
            self.models[graph], self.layers[graph], seen, dynamic=self.form.dynamic, slack=slack
        )
        for name, layer in recipe.graphs[graph].layers.items():
            if layer.precision in ("int8", "int4") and not layer.outliers:
                recipe = recipe.with_layer(graph, name, outliers=found[name])
        return recipe

    def _apart(self, recipe: Recipe, graph: str) -> dict[str, tuple[int, ...]]:
        """Returns the channels of each value that no layer rounds."""
        found: dict[str, set[int]] = {}
        for layer in self.layers[graph]:
            channels = set(recipe.graphs[graph].layers[layer.name].outliers)
            for value in layer.inputs:
                found[value] = found.get(value, channels) & channels
        return {value: tuple(sorted(channels)) for value, channels in found.items() if channels}

    def _grids(
        self, recipe: Recipe, graph: str, model: ir.Model, canvases: CanvasSet | None = None
    ) -> dict[str, Grid]:
        """Finds or makes the grids of int4 layers; without canvases values are just rounded.

        Args:
            model: Float32, smoothed: its matrices are what is stored.
        """
        chosen = [
            layer
            for layer in self.layers[graph]
            if recipe.graphs[graph].layers[layer.name].precision == "int4"
        ]
        items = model.graph.initializers
        matrices = {item.name: item.by_channel(array_of(items[item.weight])).T for item in chosen}
        known = {name: self.form.find_grid(matrix) for name, matrix in matrices.items()}
        rest = [layer for layer in chosen if known[layer.name] is None]
        moments: Mapping[str, np.ndarray] = {}
        if canvases is not None:
            moments = second_moments(model, canvases.items, layer_inputs(rest), graph=graph)
        return {
            layer.name: known[layer.name]
            or self.form.make_grid(matrices[layer.name], moments.get(layer.inputs[0]))
            for layer in chosen
        }

    def _with_scales(
        self, recipe: Recipe, graph: str, model: ir.Model, seen: Mapping[str, Activation]
    ) -> Recipe:
        """Chooses a range for each value that enters int8 products; what the recipe says stays."""
        items = model.graph.initializers
        chosen: dict[str, Range] = {}
        for layer in self.layers[graph]:
            what = recipe.graphs[graph].layers[layer.name]
            if what.precision not in ("int8", "int4"):  # which the budget may make int8
                continue
            if what.scale is not None:
                recipe = recipe.with_layer(graph, layer.name, observer=what.observer or "recipe")
                continue
            for value in layer.inputs:
                if value not in chosen:
                    weights = [
                        other.by_channel(array_of(items[other.weight]))
                        for other in self.layers[graph]
                        if value in other.inputs
                    ]
                    chosen[value] = choose_range(seen[value], weights, label=layer.name)
            widest = max((chosen[value] for value in layer.inputs), key=lambda item: item.scale)
            recipe = recipe.with_layer(
                graph, layer.name, scale=widest.scale, observer=widest.observer
            )
        return recipe

    def quantised(self, fitted: Fitted, recipe: Recipe) -> dict[str, ir.Model]:
        """Makes the graphs of a recipe whose scales and grids come from `fitted`."""
        return {
            name: self.form.quantised(
                model,
                self.layers[name],
                recipe.graphs[name],
                self._caches[name],
                fitted.grids[name],
            )
            for name, model in fitted.models.items()
        }

    def fp16(self, recipe: Recipe) -> dict[str, ir.Model]:
        """Makes the fp16 graphs."""
        return {
            name: self.form.fp16(model, recipe.graphs[name].float32, self._caches[name])
            for name, model in self.models.items()
        }


def _cache_of(spec: GraphSpec) -> Cache:
    """Returns the pairs of cache tensors: what a graph reads, and what is appended to it."""
    return tuple((spec.tensor(cache).name, new.name) for cache, new in spec.new_rows)
