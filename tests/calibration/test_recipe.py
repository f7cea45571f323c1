import json

import pytest
from dlm_edge.calibration.forms.board import BoardForm
from dlm_edge.calibration.layers import find_layers
from dlm_edge.calibration.recipe import Recipe, apply_edits, read_recipe, recipe_bytes
from dlm_edge.runtime.errors import CalibrationError
from small_graphs import ROLES, small_graph

MODEL = small_graph(timed=True)
LAYERS = find_layers(MODEL, ROLES)
RECIPE = Recipe(target="orin-nano", graphs={"g": BoardForm().default_recipe(LAYERS, "int8")})
VALUES = {"g": {value.name for node in MODEL.graph for value in node.outputs}}


def edited(**content):
    return apply_edits(RECIPE, {"g": content}, {"g": LAYERS}, VALUES)


def test_linear_layers_multiply_integers_and_heads_are_only_stored_as_such():
    chosen = {name: layer.precision for name, layer in RECIPE.graphs["g"].layers.items()}
    assert chosen == {
        "embed": "int8-weight",
        "mlp.up": "int8",
        "mlp.down": "int8",
        "time": "float",
    }
    assert RECIPE.graphs["g"].layers["time"].reason == "conditioning"


def test_a_recipe_comes_back_as_it_was_written(tmp_path):
    recipe = RECIPE.with_layer("g", "mlp.up", scale=0.25, alpha=0.5, observer="mse")
    (tmp_path / "recipe.json").write_bytes(recipe_bytes(recipe))
    back = apply_edits(RECIPE, read_recipe(tmp_path / "recipe.json"), {"g": LAYERS}, VALUES)
    assert back == recipe
    assert json.loads(recipe_bytes(recipe)) == recipe.to_json()


def test_edits_change_what_they_name_and_nothing_else():
    recipe = edited(layers={"mlp.down": {"precision": "float"}}, float32=["sum"])
    assert recipe.graphs["g"].layers["mlp.down"].precision == "float"
    assert recipe.graphs["g"].layers["mlp.up"] == RECIPE.graphs["g"].layers["mlp.up"]
    assert recipe.graphs["g"].float32 == ("sum",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"layers": {"mlp.middle": {"precision": "int8"}}}, r"mlp\.middle.*it has embed"),
        ({"layers": {"mlp.up": {"precision": "int4"}}}, r"mlp\.up.*'int4'.*int8 or"),
        ({"layers": {"time": {"precision": "int8"}}}, r"time.*choose float"),
        ({"layers": {"mlp.up": {"scale": -1}}}, r"mlp\.up.*scale.*positive"),
        ({"layers": {"mlp.up": {"scale": True}}}, r"mlp\.up.*scale"),
        ({"layers": {"mlp.up": {"alpha": 2}}}, r"mlp\.up.*at most 1"),
        ({"layers": {"mlp.up": {"bits": 4}}}, r"mlp\.up.*alpha, observer, outliers, precision"),
        ({"layers": {"mlp.up": 3}}, r"mlp\.up.*object"),
        ({"layers": {"mlp.up": {"scale": 10**400}}}, r"mlp\.up.*scale.*positive"),
        ({"layers": {"mlp.up": {"observer": []}}}, r"mlp\.up.*observer must be a text"),
        ({"layers": {"mlp.up": {"reason": 3}}}, r"mlp\.up.*reason must be a text"),
        ({"layers": None}, r'"layers" of graph g'),
        ({"layers": []}, r'"layers" of graph g'),
        ({"layers": 5}, r'"layers" of graph g'),
        ({"float32": ["nowhere"]}, r"'nowhere'"),
        ({"float32": "sum"}, r"list of value names"),
    ],
)
def test_edits_that_mean_nothing_are_refused_by_name(content, words):
    with pytest.raises(CalibrationError, match=words):
        edited(**content)


def test_a_graph_that_is_not_exported_is_refused_by_name():
    with pytest.raises(CalibrationError, match=r"'other'.*it has g"):
        apply_edits(RECIPE, {"other": {}}, {"g": LAYERS}, VALUES)


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 7, "graphs": {}}', '{"version": 1}'])
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text):
    path = tmp_path / "recipe.json"
    path.write_text(text)
    with pytest.raises(CalibrationError, match=r"recipe\.json"):
        read_recipe(path)


def test_a_missing_recipe_is_refused(tmp_path):
    with pytest.raises(CalibrationError, match="cannot read the recipe"):
        read_recipe(tmp_path / "no.json")
