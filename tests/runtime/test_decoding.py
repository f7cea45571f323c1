import pytest
from dlm_edge.runtime.decoding import RULES, DecodingSettings
from dlm_edge.runtime.errors import ConfigError
from hypothesis import given
from hypothesis import strategies as st


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
        {"block_size": 0},
    ],
)
def test_bad_and_contradictory_settings_are_refused_in_one_line(values):
    with pytest.raises(ConfigError) as caught:
        DecodingSettings(**values)
    assert "\n" not in str(caught.value)


def test_unknown_settings_are_refused():
    with pytest.raises(ConfigError, match="treshold"):
        DecodingSettings.from_json({"treshold": 0.9})


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_defaults_and_survives_json(rule):
    settings = DecodingSettings(rule=rule)
    assert DecodingSettings.from_json(settings.to_json()) == settings
    exact = ("first_hitting", "ancestral", "tweedie", "euler")
    assert settings.temperature == (1.0 if rule in exact else 0.0)
    for option in RULES[rule].options:
        assert option == "steps" or getattr(settings, option) is not None


def test_defaults_yield_to_what_is_asked_for():
    shipped = DecodingSettings(
        rule="threshold", threshold=0.8, temperature=0.9, top_p=0.9
    ).to_json()
    assert DecodingSettings.merge(shipped, {}).threshold == 0.8
    assert DecodingSettings.merge(shipped, {"threshold": 0.5, "steps": None}).threshold == 0.5
    other = DecodingSettings.merge(shipped, {"rule": "factor"})
    assert (other.factor, other.threshold, other.temperature) == (1.0, None, 0.9)
    cold = DecodingSettings.merge(shipped, {"temperature": 0.0})
    assert (cold.temperature, cold.top_p) == (0.0, None)
    assert DecodingSettings.merge(shipped, {"rule": "ancestral", "steps": 8}).temperature == 1.0
    with pytest.raises(ConfigError):
        DecodingSettings.merge(shipped, {"steps": 4})
    with pytest.raises(ConfigError):
        DecodingSettings.merge(shipped, {"temperature": 0.0, "top_k": 4})
    with pytest.raises(ConfigError):
        DecodingSettings.merge(shipped, {"rule": "best"})


@given(st.sampled_from(list(RULES)), st.sampled_from(list(RULES)))
def test_any_bundle_default_merges_with_any_rule(shipped, asked):
    merged = DecodingSettings.merge(DecodingSettings(rule=shipped).to_json(), {"rule": asked})
    assert merged == DecodingSettings(rule=asked)
