"""The recipe: what happens to each layer, as JSON that a person can read, edit and pass back.

    {"version": 1, "target": "orin-nano", "graphs": {"denoise": {
       "layers": {"trunk.layers.0.mlp.down": {"precision": "int8", "alpha": 0.5, "scale": 0.0314,
                                              "observer": "mse", "reason": ""}, …},
       "float32": ["add_302"]}}}

An edited recipe may leave out layers, or fields of a layer: these are decided as without a recipe,
but a scale without an alpha is one of the unfolded input. Names that the graphs do not have are
refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..runtime.errors import CalibrationError, brief
from ..runtime.files import parse_json
from .layers import WeightLayer

RECIPE_VERSION = 1
MAX_RECIPE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecipe:
    """What happens to one layer."""

    precision: str
    """int4 (weights; on CPUs with int8 activations), int8 (both), int8-weight (stored), float."""
    alpha: float | None = None
    """Strength of SmoothQuant's folding into what precedes the layer; None: nothing folded."""
    scale: float | None = None
    """Step of the activations that enter it, symmetric around 0, after folding; None: decided from
    the canvases, or the activations are not quantised."""
    outliers: tuple[int, ...] = ()
    """Input channels that are multiplied in floating point beside an int8 product."""
    observer: str | None = None
    """What chose the scale: minmax, percentile, mse, entropy, or "recipe" for an edited one."""
    reason: str = ""
    """Why it is not in the precision asked for: "budget", "harm" (alone it costs too much),
    "conditioning", "uncalibrated"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphRecipe:
    """What happens to one graph."""

    layers: Mapping[str, LayerRecipe]
    """By layer name, in the graph's order."""
    float32: tuple[str, ...] = ()
    """Values that leave float16's range and are kept in float32."""

    def with_layer(self, name: str, **changes: Any) -> GraphRecipe:
        """Returns the recipe with fields of one layer changed."""
        return replace(self, layers={**self.layers, name: replace(self.layers[name], **changes)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What happens to a bundle's graphs."""

    target: str
    """Target that it was made for: recipes differ between targets."""
    graphs: Mapping[str, GraphRecipe] = field(default_factory=dict)

    def with_layer(self, graph: str, name: str, **changes: Any) -> Recipe:
        """Returns the recipe with fields of one layer changed."""
        return replace(
            self, graphs={**self.graphs, graph: self.graphs[graph].with_layer(name, **changes)}
        )

    def layers(self) -> Iterable[tuple[str, str, LayerRecipe]]:
        """Yields (graph, layer, its recipe)."""
        for graph, recipe in self.graphs.items():
            for name, layer in recipe.layers.items():
                yield graph, name, layer

    def to_json(self) -> dict[str, Any]:
        """Returns what `recipe.json` holds."""
        graphs = {
            name: {
                "layers": {
                    key: {**asdict(layer), "outliers": list(layer.outliers)}
                    for key, layer in graph.layers.items()
                },
                "float32": list(graph.float32),
            }
            for name, graph in self.graphs.items()
        }
        return {"version": RECIPE_VERSION, "target": self.target, "graphs": graphs}


def read_recipe(path: Path) -> dict[str, dict[str, Any]]:
    """Reads an edited recipe: {graph: {"layers": …, "float32": …}}, checked by `apply_edits`.

    Raises:
        CalibrationError: The file cannot be read or is no recipe.
    """
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise CalibrationError(f"--recipe {path} has more than {MAX_RECIPE_BYTES >> 20} MiB")
        data = parse_json(path.read_bytes())
    except OSError as error:
        raise CalibrationError(f"cannot read the recipe {path}: {error.strerror}") from error
    except ValueError as error:
        raise CalibrationError(
            f"the recipe {path} is no JSON ({brief(error, 100)}); start from the recipe.json of a "
            "report"
        ) from error
    graphs = data.get("graphs") if isinstance(data, dict) else None
    if not isinstance(graphs, dict) or data.get("version") != RECIPE_VERSION:
        raise CalibrationError(
            f'the recipe {path} must be an object with "version": {RECIPE_VERSION} and "graphs"; '
            "start from the recipe.json of a report"
        )
    return graphs


def apply_edits(
    recipe: Recipe,
    edits: Mapping[str, Any],
    layers: Mapping[str, Iterable[WeightLayer]],
    values: Mapping[str, Container[str]],
) -> Recipe:
    """Lays an edited recipe over a recipe.

    Args:
        values: Names of each graph's computed values, which may be kept in float32.

    Raises:
        CalibrationError: The edits name a graph or layer that there is not, or a field or value
            that has no meaning for it.
    """
    for graph, content in edits.items():
        if graph not in recipe.graphs or not isinstance(content, dict):
            raise CalibrationError(
                f"the recipe names a graph {graph!r} that the checkpoint does not export: it has "
                f"{', '.join(recipe.graphs)}"
            )
        known = {layer.name: layer for layer in layers[graph]}
        given = content.get("layers", {})
        if not isinstance(given, dict):
            raise CalibrationError(
                f'"layers" of graph {graph} of the recipe must be an object of layers by name; '
                "leave it out to change none"
            )
        unknown = [name for name in given if name not in known]
        if unknown:
            raise CalibrationError(
                f"the recipe names {len(unknown)} tensors that graph {graph} does not have: "
                f"{', '.join(map(repr, unknown[:3]))}; it has {', '.join(list(known)[:3])}, …"
            )
        for name, fields in given.items():
            changes = _check(known[name], fields)
            recipe = recipe.with_layer(graph, name, **changes)
        extra = content.get("float32", [])
        if not isinstance(extra, list) or not all(isinstance(name, str) for name in extra):
            raise CalibrationError(f'"float32" of graph {graph} must be a list of value names')
        unknown = [name for name in extra if name not in values[graph]]
        if unknown:
            raise CalibrationError(
                f'the recipe\'s "float32" names values that graph {graph} does not have: '
                f"{', '.join(map(repr, unknown[:3]))}; take them out"
            )
        merged = dict.fromkeys((*recipe.graphs[graph].float32, *extra))
        changed = replace(recipe.graphs[graph], float32=tuple(merged))
        recipe = replace(recipe, graphs={**recipe.graphs, graph: changed})
    return recipe


def _check(layer: WeightLayer, fields: Any) -> dict[str, Any]:
    """Returns the fields of one edited layer that say something; CalibrationError if unsound."""
    names = set(LayerRecipe.__dataclass_fields__)
    if not isinstance(fields, dict) or set(fields) - names:
        raise CalibrationError(
            f"layer {layer.name} of the recipe must be an object with some of "
            f"{', '.join(sorted(names))}"
        )
    changes = {name: value for name, value in fields.items() if value is not None}
    precision = changes.get("precision")
    if precision is not None and precision not in layer.precisions:
        raise CalibrationError(
            f"layer {layer.name} of the recipe cannot have precision {precision!r}: choose "
            f"{' or '.join(layer.precisions)}"
        )
    for name in ("scale", "alpha"):
        if name in changes and not _is_positive(changes[name], zero=name == "alpha"):
            raise CalibrationError(
                f"layer {layer.name} of the recipe: {name} must be a positive number, found "
                f"{str(changes[name])[:40]!r}"
            )
    for name in ("observer", "reason"):
        if not isinstance(changes.get(name, ""), str):
            raise CalibrationError(f"layer {layer.name} of the recipe: {name} must be a text")
    if "outliers" in changes:
        changes["outliers"] = _channels(layer, changes["outliers"])
    if changes.get("alpha", 0.0) > 1.0:
        raise CalibrationError(f"layer {layer.name} of the recipe: alpha must be at most 1")
    return changes


def _channels(layer: WeightLayer, value: Any) -> tuple[int, ...]:
    """Returns an edited list of channels, sorted; CalibrationError if it is none."""
    wanted = isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and 0 <= item < layer.num_inputs
        for item in value
    )
    if not wanted:
        raise CalibrationError(
            f"layer {layer.name} of the recipe: outliers must be a list of input channels from 0 "
            f"to {layer.num_inputs - 1}"
        )
    return tuple(sorted(set(value)))


def _is_positive(value: Any, *, zero: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        if not math.isfinite(value):
            return False
    except OverflowError:  # an integer beyond every float
        return False
    return value >= 0 if zero else value > 0


def recipe_bytes(recipe: Recipe) -> bytes:
    """Returns a recipe as the bytes of its JSON file."""
    return (json.dumps(recipe.to_json(), indent=1) + "\n").encode()
