import pytest
from dlm_edge.calibration.losses.budget import fit_budget, fits, layer_costs, without
from dlm_edge.calibration.losses.loss import Ratio
from dlm_edge.calibration.recipe import GraphRecipe, LayerRecipe, Recipe
from dlm_edge.runtime.errors import CalibrationError
from hypothesis import given
from hypothesis import strategies as st


def ratio(loss, margin=0.0):
    return Ratio(value=1 + loss, low=1 + loss - margin, high=1 + loss + margin)


def additive(losses, floor=0.0, seen=None):
    """A model whose layers' losses add up; `floor` is lost even without any quantised layer."""

    def measure(recipe):
        names = [name for _, name, layer in recipe.layers() if layer.precision != "float"]
        if seen is not None:
            seen.append(tuple(names))
        return ratio(floor + sum(losses[name] for name in names))

    return measure


def recipe_of(names):
    layers = {name: LayerRecipe(precision="int8", scale=0.1) for name in names}
    return Recipe(target="orin-nano", graphs={"g": GraphRecipe(layers=layers)})


def costs_of(losses, measure):
    recipe = recipe_of(losses)
    return layer_costs(recipe, measure, [(graph, name) for graph, name, _ in recipe.layers()])


def test_each_layer_is_measured_alone_and_the_most_expensive_comes_first():
    losses = {"a": 0.001, "b": 0.004, "c": -0.001}
    seen = []
    costs = costs_of(losses, additive(losses, seen=seen))
    assert seen == [("a",), ("b",), ("c",)]
    assert [cost.layer for cost in costs] == ["b", "a", "c"]
    assert [round(cost.ratio.loss, 9) for cost in costs] == [0.004, 0.001, -0.001]


def test_a_recipe_that_fits_gives_up_no_layer():
    losses = {"a": 0.001, "b": 0.002}
    costs = costs_of(losses, additive(losses))
    outcome = fit_budget(recipe_of(losses), costs, additive(losses), 0.005)
    assert outcome.met
    assert outcome.given_up == 0
    assert outcome.recipe == recipe_of(losses)


@given(st.lists(st.floats(1e-5, 0.01), min_size=1, max_size=12), st.floats(1e-4, 0.05))
def test_the_fewest_layers_are_given_up(values, budget):
    """Against trying every number, where losses add up."""
    losses = {f"layer{index}": value for index, value in enumerate(values)}
    recipe, measure = recipe_of(losses), additive(losses)
    costs = costs_of(losses, measure)
    counts = range(len(values) + 1)
    wanted = next(n for n in counts if fits(measure(without(recipe, costs, n)), budget))
    outcome = fit_budget(recipe, costs, measure, budget)
    assert outcome.met
    assert outcome.given_up == wanted
    kept = [layer for _, _, layer in outcome.recipe.layers() if layer.precision == "float"]
    assert len(kept) == wanted
    assert all(layer.reason == "budget" for layer in kept)


def test_a_budget_that_cannot_be_met_says_the_best_and_what_it_costs():
    losses = {"a": 0.02, "b": 0.01}
    outcome = fit_budget(
        recipe_of(losses), costs_of(losses, additive(losses)),
        additive(losses, floor=0.007), 0.005,
    )  # fmt: skip
    assert not outcome.met
    assert outcome.given_up == 2
    with pytest.raises(CalibrationError, match=r"2 of 2 layers.*loses 0\.70 %.*--force"):
        outcome.require(0.005, 2, force=False)
    outcome.require(0.005, 2, force=True)


def test_a_recipe_without_any_int8_layer_is_no_int8_bundle():
    losses = {"a": 0.02, "b": 0.01}
    costs = costs_of(losses, additive(losses))
    outcome = fit_budget(recipe_of(losses), costs, additive(losses), 0.005)
    assert (outcome.met, outcome.given_up) == (True, 2)
    with pytest.raises(CalibrationError, match=r"--max-loss 0\.5 .*--precision fp16"):
        outcome.require_integers("int8", 0.005, force=False)
    outcome.require_integers("int8", 0.005, force=True)
    kept = fit_budget(recipe_of(losses), costs, additive(losses), 0.015)
    kept.require_integers("int8", 0.015, force=False)


def test_the_interval_counts_not_only_the_estimate():
    assert fits(ratio(0.004, 0.001), 0.0051)
    assert not fits(ratio(0.004, 0.002), 0.005)
