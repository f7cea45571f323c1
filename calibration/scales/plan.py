"""The plan: what happens to each layer, as JSON that a person can read, edit and pass back.

    {"version": 1, "target": "orin-nano", "graphs": {"denoise": {
       "layers": {"trunk.layers.0.mlp.down": {"precision": "int8", "alpha": 0.5, "scale": 0.0314,
                                              "observer": "mse", "reason": ""}, …},
       "float32": ["add_302"]}}}

Edits that come back may leave out layers, or fields of a layer: what is not said is decided as if
there were no plan, but a scale without an alpha is one of the unfolded input. Names that the graphs
do not have are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Container, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ...runtime.errors import CalibrationError, brief
from .linears import PRECISIONS, Layer

PLAN_VERSION = 1
MAX_PLAN_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """What happens to one layer."""

    precision: str
    """int8 (weights and activations), int8-weight (stored as int8 only) or float."""
    alpha: float | None = None
    """Strength of SmoothQuant's folding into what precedes the layer; None: nothing folded."""
    scale: float | None = None
    """Step of the activations that enter it, symmetric around 0, after folding; None: decided from
    the canvases, or the activations are not quantised."""
    observer: str | None = None
    """What chose the scale: minmax, percentile, mse, entropy, or "plan" for an edited one."""
    reason: str = ""
    """Why the layer is not int8: "budget", "harm" (see `tables.py`), "conditioning"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPlan:
    """What happens to one graph."""

    layers: Mapping[str, LayerPlan]
    """By layer name, in the graph's order."""
    float32: tuple[str, ...] = ()
    """Values that leave float16's range and are kept in float32."""

    def with_layer(self, name: str, **changes: Any) -> GraphPlan:
        """Returns the plan with fields of one layer changed."""
        return replace(self, layers={**self.layers, name: replace(self.layers[name], **changes)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What happens to a bundle's graphs."""

    target: str
    """Target that it was made for: recipes differ between targets."""
    graphs: Mapping[str, GraphPlan] = field(default_factory=dict)

    def with_layer(self, graph: str, name: str, **changes: Any) -> Plan:
        """Returns the plan with fields of one layer changed."""
        return replace(
            self, graphs={**self.graphs, graph: self.graphs[graph].with_layer(name, **changes)}
        )

    def layers(self) -> Iterable[tuple[str, str, LayerPlan]]:
        """Yields (graph, layer, its plan)."""
        for graph, plan in self.graphs.items():
            for name, layer in plan.layers.items():
                yield graph, name, layer

    def to_json(self) -> dict[str, Any]:
        """Returns what `plan.json` holds."""
        graphs = {
            name: {
                "layers": {key: asdict(layer) for key, layer in graph.layers.items()},
                "float32": list(graph.float32),
            }
            for name, graph in self.graphs.items()
        }
        return {"version": PLAN_VERSION, "target": self.target, "graphs": graphs}


def default_plan(layers: Iterable[Layer]) -> GraphPlan:
    """Plans every layer as small as it should be: before any measurement.

    Embeddings and heads are stored as int8 and computed in floating point: a head's error goes
    straight into the logits, and at these block sizes its weights' bytes are what costs.
    """
    plans = {}
    for layer in layers:
        if not layer.quantizable:
            plans[layer.name] = LayerPlan(precision="float", reason="conditioning")
        elif layer.head or layer.kind != "linear":
            plans[layer.name] = LayerPlan(precision="int8-weight")
        else:
            plans[layer.name] = LayerPlan(precision="int8")
    return GraphPlan(layers=plans)


def read_plan(path: Path) -> dict[str, dict[str, Any]]:
    """Reads an edited plan: {graph: {"layers": …, "float32": …}}, checked by `apply_edits`.

    Raises:
        CalibrationError: The file cannot be read or is no plan.
    """
    try:
        if path.stat().st_size > MAX_PLAN_BYTES:
            raise CalibrationError(f"--plan {path} has more than {MAX_PLAN_BYTES >> 20} MiB")
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise CalibrationError(f"cannot read the plan {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CalibrationError(
            f"the plan {path} is no JSON ({brief(error, 100)}); start from "
            "the plan.json of a report"
        ) from error
    graphs = data.get("graphs") if isinstance(data, dict) else None
    if not isinstance(graphs, dict) or data.get("version") != PLAN_VERSION:
        raise CalibrationError(
            f'the plan {path} must be an object with "version": {PLAN_VERSION} and "graphs"; start '
            "from the plan.json of a report"
        )
    return graphs


def apply_edits(
    plan: Plan,
    edits: Mapping[str, Any],
    layers: Mapping[str, Iterable[Layer]],
    values: Mapping[str, Container[str]],
) -> Plan:
    """Lays an edited plan over a plan.

    Args:
        plan: Holds every layer.
        edits: What `read_plan` gave.
        layers: The layers of each graph.
        values: Names of each graph's computed values, which may be kept in float32.

    Raises:
        CalibrationError: The edits name a graph or layer that there is not, or a field or value
            that has no meaning for it.
    """
    for graph, content in edits.items():
        if graph not in plan.graphs or not isinstance(content, dict):
            raise CalibrationError(
                f"the plan names a graph {graph!r} that the checkpoint does not export: it has "
                f"{', '.join(plan.graphs)}"
            )
        known = {layer.name: layer for layer in layers[graph]}
        given = content.get("layers", {})
        if not isinstance(given, dict):
            raise CalibrationError(
                f'"layers" of graph {graph} of the plan must be an object of layers by name; leave '
                "it out to change none"
            )
        unknown = [name for name in given if name not in known]
        if unknown:
            raise CalibrationError(
                f"the plan names {len(unknown)} tensors that graph {graph} does not have: "
                f"{', '.join(map(repr, unknown[:3]))}; it has {', '.join(list(known)[:3])}, …"
            )
        for name, fields in given.items():
            changes = _check(known[name], fields)
            plan = plan.with_layer(graph, name, **changes)
        extra = content.get("float32", [])
        if not isinstance(extra, list) or not all(isinstance(name, str) for name in extra):
            raise CalibrationError(f'"float32" of graph {graph} must be a list of value names')
        unknown = [name for name in extra if name not in values[graph]]
        if unknown:
            raise CalibrationError(
                f'the plan\'s "float32" names values that graph {graph} does not have: '
                f"{', '.join(map(repr, unknown[:3]))}; take them out"
            )
        merged = dict.fromkeys((*plan.graphs[graph].float32, *extra))
        changed = replace(plan.graphs[graph], float32=tuple(merged))
        plan = replace(plan, graphs={**plan.graphs, graph: changed})
    return plan


def _check(layer: Layer, fields: Any) -> dict[str, Any]:
    """Returns the fields of one edited layer that say something; CalibrationError if unsound."""
    names = set(LayerPlan.__dataclass_fields__)
    if not isinstance(fields, dict) or set(fields) - names:
        raise CalibrationError(
            f"layer {layer.name} of the plan must be an object with some of "
            f"{', '.join(sorted(names))}"
        )
    changes = {name: value for name, value in fields.items() if value is not None}
    precision = changes.get("precision")
    if precision is not None and precision not in layer.precisions:
        raise CalibrationError(
            f"layer {layer.name} of the plan cannot have precision {precision!r}: choose "
            f"{' or '.join(layer.precisions)}"
        )
    for name in ("scale", "alpha"):
        if name in changes and not _is_positive(changes[name], zero=name == "alpha"):
            raise CalibrationError(
                f"layer {layer.name} of the plan: {name} must be a positive number, found "
                f"{str(changes[name])[:40]!r}"
            )
    for name in ("observer", "reason"):
        if not isinstance(changes.get(name, ""), str):
            raise CalibrationError(f"layer {layer.name} of the plan: {name} must be a text")
    if changes.get("alpha", 0.0) > 1.0:
        raise CalibrationError(f"layer {layer.name} of the plan: alpha must be at most 1")
    return changes


def _is_positive(value: Any, *, zero: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        if not math.isfinite(value):
            return False
    except OverflowError:  # an integer beyond every float
        return False
    return value >= 0 if zero else value > 0


def fixed_scale(name: str, scale: float) -> CalibrationError:
    """Says that a layer's scale has no place where each run takes its own."""
    return CalibrationError(
        f"layer {name} of the plan has a fixed scale of {scale:g}, but on a CPU each run takes its "
        'own: remove "scale"'
    )


def plan_bytes(plan: Plan) -> bytes:
    """Returns a plan as the bytes of its JSON file."""
    return (json.dumps(plan.to_json(), indent=1) + "\n").encode()


__all__ = [
    "PRECISIONS",
    "GraphPlan",
    "LayerPlan",
    "Plan",
    "apply_edits",
    "default_plan",
    "fixed_scale",
    "plan_bytes",
    "read_plan",
]
