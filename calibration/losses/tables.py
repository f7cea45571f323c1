"""Embeddings and heads are stored as int8 only where that was measured to be harmless.

An error in these matrices goes straight into what the model sees or says, and they are most of a
small model's bytes. So each is quantised alone, all else in floating point, at the most compressed
precision first, and the first that is harmless is taken; a layer that none is harmless for stays
in floating point, whatever budget is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..scales.linears import Layer
from ..scales.plan import Plan
from .loss import Ratio
from .sensitivity import Measure, all_float

HARMLESS = 0.5
"""Share of the loss budget that the upper end of its cost may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableTrial:
    """One embedding or head, stored in one way."""

    graph: str
    layer: str
    precision: str
    ratio: Ratio
    harmless: bool

    def to_json(self) -> dict[str, Any]:
        """Returns the figures for a report."""
        return asdict(self)


def harmless_tables(
    plan: Plan,
    layers: Mapping[str, Iterable[Layer]],
    measure: Measure,
    max_loss: float,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Plan, tuple[TableTrial, ...]]:
    """Finds the smallest harmless precision of every embedding and head.

    Args:
        plan: With alphas and scales; what it has in floating point stays so.
        layers: Of each graph.
        measure: Perplexity of a plan over the floating-point model's.
        max_loss: The whole budget, of which HARMLESS is allowed to each.
        say: Told what is being measured.

    Returns:
        The plan with these layers' precisions, and all that was measured.
    """
    base, trials = all_float(plan), []
    for graph, found in layers.items():
        for layer in found:
            planned = plan.graphs[graph].layers[layer.name].precision
            if planned == "float" or not (layer.head or layer.lookups):
                continue
            for precision in layer.precisions[layer.precisions.index(planned) :]:
                if precision == "float":
                    plan = plan.with_layer(graph, layer.name, precision="float", reason="harm")
                    break
                say(f"measuring {layer.name} alone as {precision}")
                ratio = measure(base.with_layer(graph, layer.name, precision=precision))
                harmless = ratio.high - 1.0 <= HARMLESS * max_loss
                trials.append(
                    TableTrial(
                        graph=graph,
                        layer=layer.name,
                        precision=precision,
                        ratio=ratio,
                        harmless=harmless,
                    )
                )
                if harmless:
                    reason = "" if precision == planned else "harm"
                    plan = plan.with_layer(graph, layer.name, precision=precision, reason=reason)
                    break
    return plan, tuple(trials)
