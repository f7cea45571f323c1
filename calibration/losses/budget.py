"""What quantising layers costs, and the fewest layers in floating point that keep a budget.

Layers are measured alone, all others in floating point, on one text under one set of masks
(antithetic pairs, equal seeds), so that a cost is a difference of the same draws. They are given up
in the order of these costs. Costs do not quite add up, so the whole is measured again for every
number tried: by bisection, which finds the smallest number if more layers in floating point never
cost more, and in any case one that was measured to fit.

Embeddings and heads are decided first: an error in these matrices goes straight into what the model
sees or says, and they are most of a small model's bytes. Each is stored in the most compressed
precision that was measured to be harmless, and stays in floating point where none is, whatever
budget is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...runtime.errors import CalibrationError
from ..layers import WeightLayer
from ..recipe import Recipe
from .loss import Ratio

Measure = Callable[[Recipe], Ratio]
"""Builds what a recipe says and gives its perplexity over the floating-point model's."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """What quantising one layer costs, all others in floating point."""

    graph: str
    layer: str
    precision: str
    ratio: Ratio


def all_float(recipe: Recipe) -> Recipe:
    """Returns the recipe with every layer in floating point."""
    for graph, name, _ in recipe.layers():
        recipe = recipe.with_layer(graph, name, precision="float")
    return recipe


def layer_costs(
    recipe: Recipe,
    measure: Measure,
    chosen: Sequence[tuple[str, str]],
    progress: Progress = lambda done, total: None,
) -> tuple[LayerCost, ...]:
    """Quantises layers alone, as the recipe has them; the most expensive comes first.

    Args:
        recipe: Has each of them quantised.
        measure: What a recipe costs.
        chosen: Graph and name of each layer.
        progress: Called with layers done, and all of them.
    """
    base = all_float(recipe)
    costs = []
    for number, (graph, name) in enumerate(chosen):
        precision = recipe.graphs[graph].layers[name].precision
        ratio = measure(base.with_layer(graph, name, precision=precision))
        costs.append(LayerCost(graph=graph, layer=name, precision=precision, ratio=ratio))
        progress(number + 1, len(chosen))
    return tuple(sorted(costs, key=lambda cost: (-cost.ratio.value, cost.graph, cost.layer)))


def without(
    recipe: Recipe, costs: Sequence[LayerCost], count: int, instead: str = "float"
) -> Recipe:
    """Returns the recipe with the `count` most expensive layers in another precision."""
    for cost in costs[:count]:
        recipe = recipe.with_layer(cost.graph, cost.layer, precision=instead, reason="budget")
    return recipe


WORDS = {"float": "in floating point", "int8": "in int8 instead of int4"}
"""What became of layers that were given up."""
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


def harmless_tables(
    recipe: Recipe,
    layers: Mapping[str, Iterable[WeightLayer]],
    measure: Measure,
    max_loss: float,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Recipe, tuple[TableTrial, ...]]:
    """Finds the smallest harmless precision of every embedding and head.

    Args:
        recipe: With alphas and scales; what it has in floating point stays so.
        max_loss: The whole budget, of which HARMLESS is allowed to each.

    Returns:
        The recipe with these layers' precisions, and all that was measured.
    """
    base, trials = all_float(recipe), []
    for graph, found in layers.items():
        for layer in found:
            given = recipe.graphs[graph].layers[layer.name].precision
            if given == "float" or not (layer.head or layer.lookups):
                continue
            for precision in layer.precisions[layer.precisions.index(given) :]:
                if precision == "float":
                    recipe = recipe.with_layer(graph, layer.name, precision="float", reason="harm")
                    break
                say(f"measuring {layer.name} alone as {precision}")
                ratio = measure(base.with_layer(graph, layer.name, precision=precision))
                harmless = fits(ratio, HARMLESS * max_loss)
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
                    reason = "" if precision == given else "harm"
                    recipe = recipe.with_layer(
                        graph, layer.name, precision=precision, reason=reason
                    )
                    break
    return recipe, tuple(trials)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One recipe that was measured as a whole."""

    given_up: int
    """Layers in floating point, or int8 instead of int4, for the budget."""
    ratio: Ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a budget."""

    recipe: Recipe
    """The one to ship: within the budget, or the best there is."""
    ratio: Ratio
    met: bool
    given_up: int
    instead: str
    """Precision of layers that were given up: float, or int8 instead of int4."""
    trials: tuple[Trial, ...]
    """All that was measured, in the order of `given_up`."""

    def require(self, max_loss: float, num_layers: int, *, force: bool) -> None:
        """Raises CalibrationError for a budget that was not met, unless forced."""
        if self.met or force:
            return
        raise CalibrationError(
            f"--max-loss {100 * max_loss:g} cannot be met: the best recipe, with "
            f"{self.given_up} of {num_layers} layers {WORDS[self.instead]}, loses "
            f"{100 * self.ratio.loss:.2f} % of perplexity{self.ratio.place} (up to "
            f"{100 * (self.ratio.high - 1):.2f} % with 95 %); "
            "nothing was written: allow that much, give more --calibration-data, or pass --force"
        )

    def require_integers(self, precision: str, max_loss: float, *, force: bool) -> None:
        """Raises CalibrationError for a recipe that leaves nothing in integers, unless forced."""
        if force or any(layer.precision != "float" for _, _, layer in self.recipe.layers()):
            return
        raise CalibrationError(
            f"no layer can be {precision} within --max-loss {100 * max_loss:g} by this recipe; "
            "nothing was written: export with --precision fp16, allow more, or pass --force"
        )


def fits(ratio: Ratio, max_loss: float) -> bool:
    """True if even the upper end of the interval is within the budget."""
    return ratio.high - 1.0 <= max_loss


def single_trial(recipe: Recipe, ratio: Ratio, max_loss: float) -> Outcome:
    """Returns the outcome of a recipe that is taken as it is, such as an edited one."""
    given_up = sum(layer.precision == "float" for _, _, layer in recipe.layers())
    trial = Trial(given_up=given_up, ratio=ratio)
    return Outcome(
        recipe=recipe,
        ratio=ratio,
        met=fits(ratio, max_loss),
        given_up=given_up,
        instead="float",
        trials=(trial,),
    )


def fit_budget(
    recipe: Recipe,
    costs: Sequence[LayerCost],
    measure: Measure,
    max_loss: float,
    instead: str = "float",
) -> Outcome:
    """Finds the recipe to ship.

    Args:
        recipe: Everything quantised that may be.
        costs: Of its layers, most expensive first.
        instead: Precision of layers that are given up.
    """
    trials: dict[int, Trial] = {}

    def attempt(count: int) -> bool:
        if count not in trials:
            ratio = measure(without(recipe, costs, count, instead))
            trials[count] = Trial(given_up=count, ratio=ratio)
        return fits(trials[count].ratio, max_loss)

    def outcome(count: int, met: bool) -> Outcome:
        return Outcome(
            recipe=without(recipe, costs, count, instead),
            ratio=trials[count].ratio,
            met=met,
            given_up=count,
            instead=instead,
            trials=tuple(trials[number] for number in sorted(trials)),
        )

    if attempt(0):
        return outcome(0, True)
    # Nothing below `low` is known to fit; `high` fits once it has been measured.
    low, high = 0, len(costs)
    if not attempt(high):
        best = min(trials.values(), key=lambda trial: trial.ratio.high)
        return outcome(best.given_up, False)
    while high - low > 1:
        middle = (low + high) // 2
        if attempt(middle):
            high = middle
        else:
            low = middle
    return outcome(high, True)
