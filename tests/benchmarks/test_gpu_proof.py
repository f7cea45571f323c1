"""The run that proves things on a GPU: what it calls a proof, and what it does without one."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from dlm_edge.benchmarks import gpu_kernels, gpu_proof
from dlm_edge.runtime.gpu.facts import GpuFacts


def ends(code, text):
    return lambda command: subprocess.CompletedProcess(command, code, text)


@pytest.mark.parametrize(
    ("code", "text", "ok"),
    [
        (0, "12 passed, 3 skipped in 4.2s", True),
        (0, "15 skipped, 900 deselected in 4.2s", False),
        (5, "900 deselected in 4.2s", False),
        (1, "1 failed, 12 passed in 4.2s", False),
    ],
)
def test_tests_prove_something_only_if_some_passed_and_none_failed(code, text, ok):
    found = gpu_proof.prove([sys.executable], ends(code, text), counts=True)
    assert found["ok"] is ok
    assert ok or found["last_lines"] == [text]


def test_a_missing_tool_is_no_proof():
    found = gpu_proof.prove(["no-such-sanitizer"], ends(0, ""))
    assert not found["ok"]
    assert "comes with the CUDA toolkit" in found["why"]


def test_every_step_runs_a_module_that_is_there():
    for command in gpu_proof.steps(Path("results"), 5).values():
        module = command[command.index("-m") + 1]
        assert importlib.util.find_spec(module), module


def test_what_was_found_is_kept_with_the_card_and_a_failure_fails(monkeypatch, tmp_path):
    card = GpuFacts(name="H200", compute_capability="9.0", driver_version=13000, power_mode="")
    monkeypatch.setattr(gpu_proof, "read_gpu", lambda: card)
    monkeypatch.setattr(gpu_proof, "run_command", ends(0, "7 passed in 1s"))
    monkeypatch.setattr(gpu_proof.shutil, "which", lambda name: name)
    result = CliRunner().invoke(gpu_proof.main, ["--results", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    kept = (tmp_path / "gpu-proof.json").read_text("utf-8")
    for words in ('"gpu": "H200"', '"driver": 13000', '"date"', '"command"', '"racecheck"'):
        assert words in kept
    monkeypatch.setattr(gpu_proof, "run_command", ends(9, "ERROR SUMMARY: 1 error"))
    result = CliRunner().invoke(gpu_proof.main, ["--results", str(tmp_path)])
    assert result.exit_code == 1
    assert "memcheck: FAILED\nERROR SUMMARY: 1 error" in result.stderr


@pytest.mark.parametrize("command", [gpu_proof.main, gpu_kernels.main])
def test_without_a_gpu_it_is_one_line(command, tmp_path):
    try:
        gpu_proof.read_gpu()
    except Exception:
        arguments = ["--results", str(tmp_path)] if command is gpu_proof.main else []
        result = CliRunner().invoke(command, arguments)
        assert result.exit_code == 1
        assert len(result.stderr.splitlines()) == 1
        assert not list(tmp_path.iterdir())
        return
    pytest.skip("this machine has a GPU")
