import json

import pytest
from dlm_edge.calibration.scales.linears import find_layers
from dlm_edge.calibration.scales.plan import Plan, apply_edits, default_plan, plan_bytes, read_plan
from dlm_edge.runtime.errors import CalibrationError
from small_graphs import ROLES, small_graph

MODEL = small_graph(timed=True)
LAYERS = find_layers(MODEL, ROLES)
PLAN = Plan(target="orin-nano", graphs={"g": default_plan(LAYERS)})
VALUES = {"g": {name for node in MODEL.graph.node for name in node.output}}


def edited(**content):
    return apply_edits(PLAN, {"g": content}, {"g": LAYERS}, VALUES)


def test_linear_layers_multiply_integers_and_heads_are_only_stored_as_such():
    chosen = {name: layer.precision for name, layer in PLAN.graphs["g"].layers.items()}
    assert chosen == {
        "embed": "int8-weight",
        "mlp.up": "int8",
        "mlp.down": "int8",
        "time": "float",
    }
    assert PLAN.graphs["g"].layers["time"].reason == "conditioning"


def test_a_plan_comes_back_as_it_was_written(tmp_path):
    plan = PLAN.with_layer("g", "mlp.up", scale=0.25, alpha=0.5, observer="mse")
    (tmp_path / "plan.json").write_bytes(plan_bytes(plan))
    back = apply_edits(PLAN, read_plan(tmp_path / "plan.json"), {"g": LAYERS}, VALUES)
    assert back == plan
    assert json.loads(plan_bytes(plan)) == plan.to_json()


def test_edits_change_what_they_name_and_nothing_else():
    plan = edited(layers={"mlp.down": {"precision": "float"}}, float32=["sum"])
    assert plan.graphs["g"].layers["mlp.down"].precision == "float"
    assert plan.graphs["g"].layers["mlp.up"] == PLAN.graphs["g"].layers["mlp.up"]
    assert plan.graphs["g"].float32 == ("sum",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"layers": {"mlp.middle": {"precision": "int8"}}}, r"mlp\.middle.*it has embed"),
        ({"layers": {"mlp.up": {"precision": "int4"}}}, r"mlp\.up.*'int4'.*int8 or"),
        ({"layers": {"time": {"precision": "int8"}}}, r"time.*choose float"),
        ({"layers": {"mlp.up": {"scale": -1}}}, r"mlp\.up.*scale.*positive"),
        ({"layers": {"mlp.up": {"scale": True}}}, r"mlp\.up.*scale"),
        ({"layers": {"mlp.up": {"alpha": 2}}}, r"mlp\.up.*at most 1"),
        ({"layers": {"mlp.up": {"bits": 4}}}, r"mlp\.up.*alpha, observer, precision"),
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
        apply_edits(PLAN, {"other": {}}, {"g": LAYERS}, VALUES)


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 7, "graphs": {}}', '{"version": 1}'])
def test_a_file_that_is_no_plan_is_refused(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(CalibrationError, match=r"plan\.json"):
        read_plan(path)


def test_a_missing_plan_is_refused(tmp_path):
    with pytest.raises(CalibrationError, match="cannot read the plan"):
        read_plan(tmp_path / "no.json")
