"""The load on `dlm-serve`: what it counts as right, and that a wrong text fails it."""

import json

import pytest
from click.testing import CliRunner
from dlm_edge.benchmarks import serve_load

pytest.importorskip("uvicorn")
ARGUMENTS = ["--requests", "24", "--clients", "3", "--threads", "1"]


@pytest.fixture
def one_seed(monkeypatch):
    monkeypatch.setattr(serve_load, "SEEDS", (1,))
    monkeypatch.setattr(serve_load, "TOKENS", 8)


def test_every_request_is_right_refused_or_left(one_seed, tmp_path):
    out = tmp_path / "load.json"
    result = CliRunner().invoke(serve_load.main, [*ARGUMENTS, "--out", str(out)])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text("utf-8"))
    assert sum(found["outcomes"].values()) == 24
    known = {"right", "bad body refused", "refused while it was sent", "client went away"}
    assert {"right"} <= set(found["outcomes"]) <= known
    assert found["exit_status"] == 0


def test_a_text_that_is_not_that_of_dlm_run_fails(one_seed, tmp_path, monkeypatch):
    other = {(prompt, 1): "another" for prompt in serve_load.PROMPTS}
    monkeypatch.setattr(serve_load, "expected_texts", lambda bundle, threads: other)
    result = CliRunner().invoke(serve_load.main, [*ARGUMENTS, "--out", str(tmp_path / "x")])
    assert result.exit_code == 1
    assert "wrong answers" in result.output
    assert "WRONG: " in result.output
