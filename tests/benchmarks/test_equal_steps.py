"""Speed at equal steps: what is asked for, what is measured, how it is summed up."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from dlm_edge.benchmarks.equal_steps import main, parse, summarise
from dlm_edge.runtime.errors import ConfigError
from score_bundle import write_score


def test_contestants_are_a_name_a_bundle_and_perhaps_a_rule():
    assert parse("a=x/m.dlm") == ("a", Path("x/m.dlm"), None)
    assert parse("a=m.dlm:euler") == ("a", Path("m.dlm"), "euler")
    for wrong in ("m.dlm", "=m.dlm", "a=", "a=:euler"):
        with pytest.raises(ConfigError, match="NAME=BUNDLE"):
            parse(wrong)


def test_figures_are_medians_and_ratios_stay_within_a_round():
    first = [{"cpu": 1.0, "runs": 4, "outside": 0.1}, {"cpu": 10.0, "runs": 4, "outside": 0.1}]
    second = [{"cpu": 2.0, "runs": 4, "outside": 0.2}, {"cpu": 20.0, "runs": 4, "outside": 0.4}]
    row = summarise("b", 4, second, first, 100)
    assert row["ratio"] == 0.5
    assert row["tokens_per_s"] == pytest.approx((100 / 2 + 100 / 20) / 2)
    assert row["ms_per_run"] == pytest.approx((500 + 5000) / 2)
    assert row["outside"] == pytest.approx(0.3)


def test_every_contestant_takes_the_steps_asked_for(tmp_path):
    names = ("uniform", "absorb")
    bundles = [f"{name}={write_score(tmp_path / f'{name}.dlm', name)}" for name in names]
    out = tmp_path / "figures.json"
    arguments = [*bundles, "--steps", "3", "--tokens", "15", "--rounds", "2", "--out", str(out)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    saved = json.loads(out.read_text("utf-8"))
    assert [row["name"] for row in saved["figures"]] == list(names)
    for row in saved["figures"]:
        assert row["runs"] == row["steps"] == 3
        assert row["tokens_per_s"] > 0
        assert 0 <= row["outside"] < 1
    assert saved["figures"][0]["ratio"] == 1.0
    assert set(saved["bundles"]) == set(names)
