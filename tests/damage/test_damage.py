"""The campaigns' short form: some cases of each, the same ones in every run."""

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from dlm_edge.runtime.errors import DataError
from dlm_edge.runtime.files import parse_json
from dlm_edge.runtime.pipeline import Pipeline
from score_bundle import write_score
from toy_bundle import write_toy

from damage import __main__ as runner
from damage import cases, kills
from damage.__main__ import Count
from damage.cases import CAMPAIGNS, Campaign, outcome


def outcomes(name, folder, inputs, count, seed=0):
    """Tries the first cases of a campaign; returns what came of them. A fault raises."""
    found = []
    for case in range(count):
        place = folder / f"case-{case}"
        place.mkdir()
        found.append(outcome(CAMPAIGNS[name], Random(f"{seed} {name} {case}"), place, inputs))
    return found


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines")
    bundles = {"shipped": None, "sedd": write_score(folder / "sedd.dlm")}
    return {n: Pipeline.load(p, engine="onnxruntime", threads=1) for n, p in bundles.items()}


def test_a_damaged_bundle_is_refused_in_one_line_or_runs(tmp_path):
    bundles = {"toy": write_toy(tmp_path).read_bytes()}
    found = outcomes("bundles", tmp_path, bundles, 80)
    assert found.count("BundleError") > 40


def test_an_odd_prompt_streams_what_the_result_holds_and_nothing_else(tmp_path, pipelines):
    found = outcomes("prompts", tmp_path, pipelines, 50)
    assert found.count("ConfigError") < 40


def test_whatever_is_asked_of_a_rule_ends_in_a_text_or_one_line(tmp_path, pipelines):
    found = outcomes("settings", tmp_path, pipelines, 40)
    assert found.count("ConfigError") < 34


@pytest.mark.parametrize("name", ["gguf", "safetensors", "folders", "templates"])
def test_a_damaged_checkpoint_is_refused_in_one_line_or_read(tmp_path, name):
    for module in ("torch", "transformers", "gguf"):
        pytest.importorskip(module)
    found = outcomes(name, tmp_path, CAMPAIGNS[name].prepare(tmp_path), 60)
    assert len(set(found)) > 1, "nothing was damaged, or everything was"


def test_what_is_killed_leaves_nothing_half_and_ends_the_next_time(tmp_path):
    pytest.importorskip("torch")
    inputs = kills.prepare(tmp_path, ("unpacking", "plan", "canvases"))
    found = outcomes("kills", tmp_path, inputs, 8)
    assert any("killed" in one for one in found)


def broken(fault):
    def try_case(rng, folder, inputs):
        raise fault

    return Campaign(prepare=lambda folder: None, try_case=try_case)


@pytest.mark.parametrize("fault", [KeyError("x"), DataError("two\nlines"), DataError("x" * 2000)])
def test_a_campaign_finds_what_is_no_error_of_one_line(fault):
    with pytest.raises((KeyError, AssertionError)):
        outcome(broken(fault), Random(0), Path(), None)
    assert outcome(broken(DataError("one line")), Random(0), Path(), None) == "DataError"


def test_a_campaign_goes_on_where_it_was(tmp_path):
    counted = Count(tmp_path / "x.json")
    counted.add({"case": 0, "outcome": "fine", "cpu": 0.5})
    counted.add({"case": 1, "outcome": "fault", "fault": "why"})
    counted.save()
    found = Count(tmp_path / "x.json").found
    assert found["next"] == 2
    assert found["outcomes"] == {"fine": 1, "fault": 1}
    assert json.loads((tmp_path / "x.json").read_text())["faults"][0]["fault"] == "why"


def test_lines_that_come_together_are_all_counted_before_a_hang(monkeypatch):
    monkeypatch.setattr(runner, "LOOK_SECONDS", 0.1)
    program = "import os; os.write(1, b'1\\n2\\n')\nwhile True: pass"
    words = [sys.executable, "-c", program]
    with subprocess.Popen(words, stdout=subprocess.PIPE, bufsize=0) as process:
        try:
            assert list(runner._lines(process, 0.2)) == [1, 2, None]
        finally:
            process.kill()


def test_json_nested_too_deep_is_no_json():
    with pytest.raises(ValueError, match="too deep"):
        parse_json("[" * 100_000)


def test_a_case_is_the_same_every_time(tmp_path):
    texts = [cases.odd_text(Random("0 prompts 7")) for _ in range(2)]
    assert texts[0] == texts[1]
