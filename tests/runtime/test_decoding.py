from dataclasses import dataclass
from typing import ClassVar

import click
import pytest
from click.testing import CliRunner
from dlm_edge.runtime.cli.common import DlmCommand
from dlm_edge.runtime.cli.decoding import chosen_rule_note, decoding_options, take_settings
from dlm_edge.runtime.decoding import DecodingRule, find_rule
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.runtime.families.mdlm.rules import Factor, LowConfidence, Threshold
from dlm_edge.runtime.families.table import FAMILIES, RULES, read_rule, with_rule
from dlm_edge.runtime.options import option
from hypothesis import given
from hypothesis import strategies as st
from rules import decoding


@pytest.mark.parametrize(
    "values",
    [
        {"rule": "best"},
        {"threshold": 0.0},
        {"threshold": 1.5},
        {"threshold": float("nan")},
        {"threshold": "0.9"},
        {"rule": "factor", "factor": 0},
        {"rule": "factor", "factor": float("inf")},
        {"rule": "factor", "threshold": 0.9},
        {"rule": "threshold", "steps": 4},
        {"rule": "first_hitting", "steps": 4},
        {"rule": "entropy_bound", "entropy_bound": -1.0},
        {"rule": "random", "steps": 0},
        {"rule": "random", "steps": 2.5},
        {"rule": "random", "steps": True},
        {"temperature": -1.0},
        {"temperature": 0.001},
        {"temperature": 0.0, "top_p": 0.9},
        {"top_k": 40},
        {"temperature": 1.0, "top_k": 0},
        {"temperature": 1.0, "top_p": 0.0},
        {"repetition_penalty": 0.5},
        {"rule": "tweedie", "repetition_penalty": 1.2},
        {"rule": "euler", "threshold": 0.9},
        {"rule": "next_token", "block_size": 8},
        {"block_size": 0},
    ],
)
def test_bad_and_contradictory_settings_are_refused_in_one_line(values):
    with pytest.raises(ConfigError) as caught:
        read_rule(values)
    assert "\n" not in str(caught.value)


def test_a_mistyped_option_or_rule_is_answered_with_the_one_that_was_meant():
    with pytest.raises(ConfigError, match=r"treshold .* rule threshold.* did you mean threshold"):
        read_rule({"treshold": 0.9})
    with pytest.raises(ConfigError, match="did you mean low_confidence"):
        read_rule({"rule": "low_confidense"})
    with pytest.raises(ConfigError, match=r"no rule 7, .*low_confidence, "):
        find_rule(7, RULES.values(), of="this version")


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_defaults_and_survives_json(rule):
    chosen = decoding(rule=rule)
    assert read_rule(chosen.to_json()) == chosen
    exact = ("first_hitting", "ancestral", "tweedie", "euler")
    assert chosen.to_json()["temperature"] == (1.0 if rule in exact else 0.0)
    penalised = rule not in ("tweedie", "euler", "draft_verify", "ddim", "dpm_solver")
    assert ("repetition_penalty" in chosen.to_json()) == penalised
    assert all(item.help.endswith(".") for item in chosen.options().values())


def test_defaults_yield_to_what_is_asked_for():
    shipped = read_rule({"rule": "threshold", "threshold": 0.8, "temperature": 0.9, "top_p": 0.9})
    assert shipped.override(Threshold, {}).threshold == 0.8
    assert shipped.override(Threshold, {"threshold": 0.5}).threshold == 0.5
    other = shipped.override(Factor, {})
    assert (other.factor, other.sampling.temperature, other.sampling.top_p) == (1.0, 0.9, 0.9)
    cold = shipped.override(Threshold, {"temperature": 0.0})
    assert (cold.sampling.temperature, cold.sampling.top_p) == (0.0, None)
    exact = shipped.override(RULES["ancestral"], {"steps": 8})
    assert exact.sampling.temperature == 1.0
    with pytest.raises(ConfigError):
        shipped.override(Threshold, {"steps": 4})
    with pytest.raises(ConfigError):
        shipped.override(Threshold, {"temperature": 0.0, "top_k": 4})


@given(st.sampled_from(list(RULES)), st.sampled_from(list(RULES)))
def test_any_bundle_default_is_overridden_by_any_rule(shipped, asked):
    assert decoding(rule=shipped).override(RULES[asked], {}) == decoding(rule=asked)


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmth(DecodingRule):
    """Commits what feels warm."""

    name: ClassVar[str] = "warmth"
    warmth: float = option(0.25, above=0.0, at_most=2.0, sweep=(0.5, 1.5), help="Wanted warmth.")


@pytest.fixture
def warm(monkeypatch):
    """Adds a rule with one option to the tables, and does nothing else."""
    monkeypatch.setitem(RULES, "warmth", Warmth)
    own = FAMILIES["mdlm"]
    monkeypatch.setitem(FAMILIES, "mdlm", own._replace(rules=(*own.rules, Warmth)))


def test_an_option_declared_once_is_in_json_overrides_and_range_checks(warm):
    assert read_rule({"rule": "warmth"}).to_json()["warmth"] == 0.25
    chosen = read_rule({"rule": "warmth", "warmth": 2.0}, "mdlm")
    assert chosen == Warmth(warmth=2.0)
    assert LowConfidence().override(Warmth, {"warmth": 1.5}) == Warmth(warmth=1.5)
    with pytest.raises(ConfigError, match=r"warmth must be above 0 and at most 2, not 2.5"):
        read_rule({"rule": "warmth", "warmth": 2.5})


def test_an_option_declared_once_is_on_the_command_line_and_in_its_help(warm):
    found = {}

    @click.command("heat", cls=DlmCommand)
    @decoding_options()
    def heat(**given):
        found.update(take_settings(given))
        assert not given

    shown = CliRunner().invoke(heat, ["--help"]).output
    assert "Rule warmth (mdlm):" in shown
    assert "Commits what feels warm." in shown
    assert "Wanted warmth.  [above 0 and at most 2; default: 0.25]" in " ".join(shown.split("\n"))
    assert CliRunner().invoke(heat, ["--warmth", "0.5", "--top-k", "3"]).exit_code == 0
    assert found == {"warmth": 0.5, "top_k": 3}


def test_a_mistyped_rule_on_the_command_line_is_answered_with_the_one_that_was_meant():
    heat = click.Command("heat", params=decoding_options()(lambda: None).__click_params__)
    result = CliRunner().invoke(heat, ["--rule", "treshold"])
    assert result.exit_code == 2
    assert "did you mean threshold?" in result.stderr


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        ({"steps": 4}, "low_confidence"),
        ({"threshold": 0.5, "temperature": 0.8}, None),
        ({"rule": "margin", "factor": 1.0}, "margin"),
        ({"treshold": 0.5}, None),
    ],
)
def test_an_option_chooses_the_first_rule_that_takes_it_unless_one_is_named(asked, rule):
    found = with_rule(asked, Threshold(), "mdlm")
    assert found == (asked if rule is None else {"rule": rule, **asked})


def test_a_rule_that_an_option_chose_is_said_and_one_that_was_named_is_not():
    said = chosen_rule_note({"steps": 4}, Threshold(), LowConfidence)
    assert said.startswith("--steps has no effect on rule threshold; decoding by low_confidence")
    assert chosen_rule_note({"rule": "low_confidence"}, Threshold(), LowConfidence) == ""
    assert chosen_rule_note({"threshold": 0.5}, Threshold(), Threshold) == ""
