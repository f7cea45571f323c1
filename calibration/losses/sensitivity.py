"""What each layer costs when it alone is quantised: the order in which a budget gives them up.

All measurements share one text and one set of masks (antithetic pairs, equal seeds), so that a
layer's cost is a difference of the same draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..scales.plan import Plan
from .loss import Ratio

Measure = Callable[[Plan], Ratio]
"""Builds what a plan says and gives its perplexity over the floating-point model's."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """What quantising one layer costs, all others in floating point."""

    graph: str
    layer: str
    precision: str
    ratio: Ratio

    def to_json(self) -> dict[str, Any]:
        """Returns the figures for a report."""
        return asdict(self)


def all_float(plan: Plan) -> Plan:
    """Returns the plan with every layer in floating point."""
    for graph, name, _ in plan.layers():
        plan = plan.with_layer(graph, name, precision="float")
    return plan


def layer_costs(
    plan: Plan, measure: Measure, progress: Progress = lambda done, total: None
) -> tuple[LayerCost, ...]:
    """Quantises each layer alone, as the plan has it; the most expensive comes first.

    Args:
        plan: Layers it has in floating point are left out.
        measure: Called once per layer.
        progress: Told after every layer.
    """
    chosen = [item for item in plan.layers() if item[2].precision != "float"]
    base = all_float(plan)
    costs = []
    for number, (graph, name, layer) in enumerate(chosen):
        ratio = measure(base.with_layer(graph, name, precision=layer.precision))
        costs.append(LayerCost(graph=graph, layer=name, precision=layer.precision, ratio=ratio))
        progress(number + 1, len(chosen))
    return tuple(sorted(costs, key=lambda cost: (-cost.ratio.value, cost.graph, cost.layer)))


def without(plan: Plan, costs: tuple[LayerCost, ...], count: int) -> Plan:
    """Returns the plan with the `count` most expensive layers kept in floating point."""
    for cost in costs[:count]:
        layer = plan.graphs[cost.graph].layers[cost.layer]
        kept = replace(layer, precision="float", reason="budget")
        plan = plan.with_layer(cost.graph, cost.layer, precision=kept.precision, reason=kept.reason)
    return plan
