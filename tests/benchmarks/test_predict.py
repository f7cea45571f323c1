import json
import os
from pathlib import Path

import pytest
from dlm_edge.benchmarks import predict
from dlm_edge.benchmarks.predict import compare, verdict
from round_rates import RATES

ROOT = Path(__file__).resolve().parents[2]


def result(step, memory):
    return {"steps": [{"ratio": step}], "memory": {"ratio": memory}}


def test_the_verdict_is_about_the_worst():
    found = verdict([result(1.1, 0.9), result(0.7, 1.05)])
    assert (found["steps"], found["steps_within_tolerance"]) == (2, 1)
    assert found["largest_step_error"] == pytest.approx(0.3)
    assert found["largest_memory_error"] == pytest.approx(0.1)


@pytest.mark.slow
def test_a_size_is_traced_predicted_and_measured(monkeypatch, tmp_path):
    # The process of its own finds the checkout under its package name.
    (tmp_path / "dlm_edge").symlink_to(ROOT)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    options = {"vocab_size": 64, "positions": 32, "blocks": (8,), "contexts": (16, 32)}
    found = compare("tiny", options, RATES, 0.0)
    assert {(row["rows"], row["context"]) for row in found["steps"]} >= {(8, 16), (8, 32), (32, 8)}
    for row in found["steps"]:
        assert row["ratio"] == pytest.approx(row["predicted_ms"] / row["measured_ms"])
        assert row["measured_ms"] <= row["measured_median_ms"]
    assert found["memory"]["measured_mib"] > 20


def test_published_figures_are_those_of_a_run_that_held_its_tolerances():
    saved = json.loads((ROOT / "benchmarks/results/predict.json").read_text("utf-8"))
    recomputed = verdict(saved["results"])
    assert recomputed == saved["verdict"]
    assert {item["size"] for item in saved["results"]} == set(predict.SIZES)
    assert recomputed["largest_step_error"] <= predict.TIME_TOLERANCE
    assert recomputed["largest_memory_error"] <= predict.MEMORY_TOLERANCE
