"""Embeddings and heads: the most compressed precision that is harmless."""

from dlm_edge.calibration.forms.cpu import CpuForm
from dlm_edge.calibration.layers import find_layers
from dlm_edge.calibration.losses.budget import harmless_tables
from dlm_edge.calibration.losses.loss import Ratio
from dlm_edge.calibration.recipe import Recipe
from small_graphs import ROLES, small_graph

BUDGET = 0.005


def searched(losses, *, tied=True, chosen=None):
    """Runs the search with the loss that each precision of a layer is said to have."""
    layers = find_layers(small_graph(tied=tied), ROLES)
    recipe = Recipe(target="cpu", graphs={"small": CpuForm().default_recipe(layers, "int8")})
    for name, precision in (chosen or {}).items():
        recipe = recipe.with_layer("small", name, precision=precision)
    asked = []

    def measure(candidate):
        ((name, precision),) = [
            (name, layer.precision)
            for _, name, layer in candidate.layers()
            if layer.precision != "float"
        ]
        asked.append((name, precision))
        loss = losses[name, precision]
        # It is the upper end that must be harmless.
        return Ratio(value=1 + loss / 2, low=1.0, high=1 + loss)

    found, trials = harmless_tables(recipe, {"small": layers}, measure, BUDGET)
    assert [(trial.layer, trial.precision) for trial in trials] == asked
    return found.graphs["small"].layers, trials


def test_what_is_harmless_is_stored_as_chosen():
    layers, trials = searched({("embed", "int8"): 0.0024})
    assert (layers["embed"].precision, layers["embed"].reason) == ("int8", "")
    assert trials[0].harmless


def test_more_than_half_of_the_budget_is_not_harmless_and_the_next_precision_is_tried():
    losses = {("embed", "int8"): 0.0026, ("embed", "int8-weight"): 0.001}
    layers, trials = searched(losses)
    assert (layers["embed"].precision, layers["embed"].reason) == ("int8-weight", "harm")
    assert [trial.harmless for trial in trials] == [False, True]
    assert layers["mlp.up"].precision == "int8"


def test_what_no_int8_is_harmless_for_stays_in_floating_point():
    losses = {("embed", "int8"): 0.1, ("embed", "int8-weight"): 0.1}
    layers, _ = searched(losses)
    assert (layers["embed"].precision, layers["embed"].reason) == ("float", "harm")


def test_an_embedding_and_a_head_of_their_own_are_judged_apart():
    losses = {
        ("embed", "int8-weight"): 0.1, ("head", "int8"): 0.1, ("head", "int8-weight"): 0.0,
    }  # fmt: skip
    layers, _ = searched(losses, tied=False)
    assert layers["embed"].precision == "float"
    assert layers["head"].precision == "int8-weight"


def test_what_is_in_floating_point_already_is_not_measured():
    _, trials = searched({}, chosen={"embed": "float"})
    assert trials == ()
