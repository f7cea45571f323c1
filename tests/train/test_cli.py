from __future__ import annotations

import inspect
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from dlm_edge.train.checkpoints.convert import open_any
from dlm_edge.train.cli import _print_summary, main
from dlm_edge.train.cli_options import TrainOption
from dlm_edge.train.config import TrainConfig

SHAPE = [
    *("--dim", "16", "--layers", "1", "--heads", "2"),
    *("--vocab-size", "280", "--context", "16", "--batch-size", "4"),
]
"""The smallest model."""

QUICK = [
    *SHAPE,
    *("--block-size", "8:1,full:2", "--eval-rows", "4", "--log", "none", "--warmup-steps", "2"),
]
"""A run of seconds."""
LIMIT_S = 600


def run(cache: Path, *arguments: str):
    return CliRunner().invoke(main, [*arguments, "--cache-dir", str(cache)])


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, err


def wait_for_a_state(process: subprocess.Popen[str], out: Path) -> None:
    deadline = time.monotonic() + LIMIT_S
    over = False
    while not list(out.glob("state/step-*")):
        # Looked at once more: it may have saved, and ended, behind our back.
        assert not over, process.communicate()[1]
        over = process.poll() is not None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def last_weights(out: Path) -> dict[str, torch.Tensor]:
    return open_any(out / "last").weights


def test_training_prints_the_bound_the_path_and_the_next_command(
    stories: Path, cache: Path, tmp_path: Path
):
    out = tmp_path / "run"
    result = run(cache, "--data", str(stories), "--out", str(out), *QUICK, "--max-steps", "3")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("finished after 3 steps, 192 tokens")
    assert any(line.startswith("held out, block full: ") and "perplexity" in line for line in lines)
    assert f"checkpoint: {out}" in lines
    assert lines[-2].startswith("the model has learnt nothing yet: a guess by token frequency")
    assert lines[-1].startswith(f"next: train longer (dlm-train --resume --out {out}")


def test_a_model_that_learnt_is_followed_by_the_export(capsys):
    held = {"nats_per_token": 1.0, "perplexity": 2.7, "half_width": None}
    summary = {"status": "finished", "steps": 0, "checkpoint": "run", "held_out": {"full": held}}
    _print_summary({**summary, "frequency_nats": 1.5})
    assert capsys.readouterr().out.endswith("next: dlm-export run --target cpu -o model.dlm\n")
    _print_summary({**summary, "frequency_nats": 0.9})
    assert "a guess by token frequency alone has 0.9000 nats/token\n" in capsys.readouterr().out


def test_a_start_that_failed_leaves_no_run_behind(
    stories: Path, cache: Path, tmp_path: Path, monkeypatch
):
    given = ["--data", str(stories), "--out", str(tmp_path / "run"), *SHAPE, "--max-steps", "1"]
    given += ["--eval-rows", "4"]
    monkeypatch.setitem(sys.modules, "wandb", None)
    failed = run(cache, *given, "--log", "wandb")
    assert failed.exit_code == 2
    assert "dlm-edge[wandb]" in failed.stderr
    assert run(cache, *given, "--log", "none").exit_code == 0


def test_json_is_one_object_and_nothing_else(stories: Path, cache: Path, tmp_path: Path):
    out = tmp_path / "run"
    result = run(
        cache, "--data", str(stories), "--out", str(out), *QUICK, "--max-steps", "2", "--json"
    )
    summary = json.loads(result.stdout)
    assert summary["steps"] == 2
    assert set(summary["held_out"]) == {"8", "full"}
    assert result.stderr == ""


def test_a_folder_with_a_run_is_continued_or_refused(stories: Path, cache: Path, tmp_path: Path):
    out = str(tmp_path / "run")
    given = ["--data", str(stories), "--out", out, *QUICK, "--max-steps"]
    assert run(cache, *given, "2").exit_code == 0
    again = run(cache, *given, "2")
    assert again.exit_code == 2
    assert "add --resume" in again.stderr
    more = run(cache, "--resume", "--out", out, "--max-steps", "4")
    assert more.exit_code == 0, more.output
    assert more.stdout.startswith("finished after 4 steps")
    assert open_any(out).config["model"]["dim"] == 16


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--out", "x"], 2, "--data is missing"),
        (["--data", "none.txt"], 2, "--out is missing"),
        (["--out", "x", "--resume"], 2, "x holds no run"),
        (["--data", "none.txt", "--out", "x"], 1, "none.txt: no such file"),
        (["--data", "{empty}", "--out", "x"], 1, "empty"),
        (["--data", "{latin}", "--out", "x"], 1, "not UTF-8"),
        (["--data", "{short}", "--out", "x"], 1, "shorter than two sequences"),
        (["--data", "{short}", "--out", "x", "--lr", "0"], 2, "--lr must be above 0"),
        (["--data", "{short}", "--out", "x", "--family", "gpt"], 2, "mdlm"),
        (["--data", "{short}", "--out", "x", "--init", "none"], 1, "no checkpoint here"),
        (["--evaluate", "x"], 2, "needs --data"),
        (["--evaluate", "x", "--resume"], 2, "--evaluate contradicts --resume"),
        (["--data", "{stories}", "--out", "x", "--block-size", "7"], 2, "must divide"),
        (["--data", "{stories}", "--out", "x", "--init", "none"], 1, "no checkpoint here"),
        (["--data", "{stories}", "--out", "{short}/x"], 1, "Not a directory; choose another --out"),
    ],
)
def test_bad_input_is_one_line_and_its_exit_status(
    stories: Path, cache: Path, tmp_path: Path, monkeypatch, arguments, code, message
):
    monkeypatch.chdir(tmp_path)
    files = {"empty": b"", "latin": b"caf\xe9", "short": b"Hi."}
    for name, content in files.items():
        (tmp_path / f"{name}.txt").write_bytes(content)
    names = {name: str(tmp_path / f"{name}.txt") for name in files}
    filled = [item.format(**names, stories=stories) for item in arguments]
    if "--block-size" not in filled:
        filled += ["--block-size", "8"]
    shape = SHAPE if "--evaluate" not in filled else []
    result = run(cache, *filled, *shape, "--max-steps", "1")
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("dlm-train: error: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--famly", "ar"], "No such option"),
        (["--family", "arr"], "--family arr: choose one of mdlm"),
        (["--lr", "0"], "--lr must be above 0"),
        (["--data", "none.txt"], "none.txt: no such file"),
        (["--valid", "none.txt"], "none.txt: no such file"),
        (["--log", "wandb"], "dlm-edge[wandb]"),
    ],
)
def test_a_mistake_in_the_command_is_found_without_torch(
    stories: Path, cache: Path, tmp_path: Path, monkeypatch, arguments, message
):
    for module in ("torch", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "dlm_edge.train.loop.run", raising=False)
    data = () if "--data" in arguments else ("--data", str(stories))
    result = run(cache, *data, "--out", str(tmp_path / "run"), *arguments)
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_what_does_not_fit_the_family_is_found_before_the_text_is_prepared(
    stories: Path, tmp_path: Path
):
    given = ["--data", str(stories), "--out", str(tmp_path / "run"), *SHAPE]
    for option, value, message in (
        ("--alpha", "1", "--family mdlm takes no --alpha; beside the model's shape it takes "),
        ("--block-size", "7", "--block-size 7 must divide"),
    ):
        result = run(tmp_path / "cache", *given, option, value)
        assert result.exit_code == 2
        assert message in result.stderr
        assert "norm_eps" not in result.stderr
    assert not (tmp_path / "cache").exists()


def test_help_groups_the_options(cache: Path):
    text = run(cache, "--help").output
    headings = ("What to train:", "Objective (diffusion families):", "Data:", "Run:", "Machine:")
    for heading in headings:
        assert heading in text


def test_no_option_is_taken_and_then_ignored():
    known = {item.name for item in fields(TrainConfig)}
    function = main.callback
    assert function is not None
    own = set(inspect.signature(inspect.unwrap(function)).parameters)
    grouped = [item for item in main.params if isinstance(item, TrainOption)]
    assert len(grouped) > 50
    for option in grouped:
        assert sum((option.to_family, option.name in known, option.name in own)) == 1, option.name


def test_options_of_the_objective_reach_the_family(stories: Path, cache: Path, tmp_path: Path):
    out = tmp_path / "run"
    given = ["--data", str(stories), "--out", str(out), *QUICK, "--max-steps", "1"]
    result = run(cache, *given, "--masking", "count")
    assert result.exit_code == 0, result.output
    assert open_any(out).config["objective"]["masking"] == "count"


def test_a_run_killed_at_any_moment_resumes_to_bit_identical_weights(
    stories: Path, cache: Path, command, tmp_path: Path
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    given = ["--data", str(stories), *QUICK, "--max-steps", "150", "--save-every", "7"]
    assert run(cache, *given, "--out", str(whole)).exit_code == 0
    for _ in range(20):  # a busy machine may leave it to end before it is killed
        shutil.rmtree(parts, ignore_errors=True)
        process = command(*given, "--out", str(parts))
        wait_for_a_state(process, parts)
        time.sleep(random.Random().uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            break
    assert process.returncode == -signal.SIGKILL
    code, _, err = finish(command(*given, "--out", str(parts), "--resume"))
    assert code == 0, err
    wanted = last_weights(whole)
    for name, tensor in last_weights(parts).items():
        assert torch.equal(tensor, wanted[name]), name


def test_an_interrupt_saves_and_exits_with_130(stories: Path, command, tmp_path: Path):
    out = tmp_path / "run"
    process = command("--data", str(stories), "--out", str(out), *QUICK,
                      "--max-steps", "100000", "--save-every", "5")  # fmt: skip
    wait_for_a_state(process, out)
    process.send_signal(signal.SIGINT)
    code, stdout, err = finish(process)
    assert code == 130, err
    assert err.count("stopping after this step, with all saved") == 1
    assert stdout.startswith("interrupted after ")
    assert f"next: dlm-train --resume --out {out}" in stdout
    open_any(out)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_give_the_loss_curve_of_one_and_resume(
    stories: Path, command, tmp_path: Path, strategy: str
):
    given = ["--data", str(stories), *QUICK, "--eval-every", "4", "--optimizer", "adamw"]
    curves = []
    for devices in ([], ["--devices", "2", "--strategy", strategy]):
        out = tmp_path / f"run{len(devices)}"
        losses = []
        for more in (["--max-steps", "6"], ["--max-steps", "8", "--resume"]):
            code, stdout, err = finish(
                command(*given, "--out", str(out), *devices, *more, "--json", "-v")
            )
            assert code == 0, err
            losses += [float(found) for found in re.findall(r"^loss: (\S+)$", err, re.MULTILINE)]
        summary = json.loads(stdout.splitlines()[-1])
        assert summary["steps"] == 8
        curves.append([*losses, summary["held_out"]["full"]["nats_per_token"]])
    assert len(curves[0]) == 8 + 1
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


def test_data_are_prepared_once_for_many_runs(stories: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    for name in ("a", "b"):
        given = ["--data", str(stories), "--out", str(tmp_path / name), *QUICK]
        assert run(cache, *given, "--max-steps", "1").exit_code == 0
    assert len(list((cache / "shards").iterdir())) == 1
    assert len(list((cache / "tokenizers").iterdir())) == 1


def test_evaluate_prints_the_bound_of_a_checkpoint(stories: Path, cache: Path, tmp_path: Path):
    out = str(tmp_path / "run")
    given = ["--data", str(stories)]
    assert run(cache, *given, "--out", out, *QUICK, "--max-steps", "2").exit_code == 0
    measured = run(cache, *given, "--evaluate", out, "--limit", "3", "--json")
    assert measured.exit_code == 0, measured.output
    figures = json.loads(measured.stdout)
    assert figures["perplexity_low"] <= figures["perplexity"] <= figures["perplexity_high"]
    assert figures["num_documents"] == 3
    shown = run(cache, *given, "--evaluate", out, "--limit", "3")
    assert shown.stdout.startswith(f"perplexity {figures['perplexity']:.4g} ")


def test_measuring_options_need_evaluate(stories: Path, cache: Path):
    result = run(cache, "--data", str(stories), "--out", "x", "--limit", "3")
    assert result.exit_code == 2
    assert "belong to --evaluate" in result.stderr
