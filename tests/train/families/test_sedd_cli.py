"""`dlm-train --family sedd` as it is typed: options, figures, resuming, bad input."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from dlm_edge.train.checkpoints.convert import open_any
from dlm_edge.train.cli import main

FAMILY = ["--family", "sedd"]
QUICK = [
    *("--tokenizer", "char", "--context", "16", "--batch-size", "4"),
    *("--eval-rows", "4", "--log", "none", "--warmup-steps", "2"),
]
SHAPE = ["--dim", "16", "--layers", "1", "--heads", "2", "--condition-dim", "6"]


def run(cache: Path, *arguments: str):
    return CliRunner().invoke(main, [*arguments, "--cache-dir", str(cache)])


@pytest.mark.parametrize(
    ("options", "noise", "masking"),
    [
        (["--graph", "uniform"], "geometric", "independent"),
        (["--graph", "uniform", "--noise", "loglinear"], "loglinear", "independent"),
        (["--graph", "absorb", "--masking", "count"], "loglinear", "count"),
        (["--graph", "absorb", "--noise", "geometric", "--sigma-max", "9"], "geometric", None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_both_graphs_and_noises_train_and_are_measured(
    stories: Path, cache: Path, tmp_path: Path, options, noise, masking
):
    out = str(tmp_path / "run")
    given = [
        "--data",
        str(stories),
        "--out",
        out,
        *FAMILY,
        *QUICK,
        *SHAPE,
        "--block-size",
        "8:1,full:2",
    ]
    result = run(cache, *given, *options, "--max-steps", "3", "--json")
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout)["held_out"]) == {"8", "full"}
    config = open_any(out).config
    assert config["model"]["graph"] == options[1]
    assert config["model"]["condition_dim"] == 6
    assert config["noise_schedule"]["name"] == noise
    assert config["block_sizes"] == [8, 16]
    assert config["objective"]["masking"] == (masking or "independent")
    measured = run(cache, "--data", str(stories), "--evaluate", out, "--limit", "2", "--json")
    assert measured.exit_code == 0, measured.output
    figures = json.loads(measured.stdout)
    assert figures["perplexity_low"] <= figures["perplexity"] <= figures["perplexity_high"]
    assert figures["bits_per_char"] > 0


def test_a_run_goes_on_to_bit_identical_weights(stories: Path, cache: Path, tmp_path: Path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    given = [
        "--data",
        str(stories),
        *FAMILY,
        *QUICK,
        *SHAPE,
        "--graph",
        "uniform",
        "--save-every",
        "1",
    ]
    done = run(cache, *given, "--out", str(whole), "--max-steps", "4")
    assert done.exit_code == 0, done.output
    shutil.copytree(whole, part)
    shutil.rmtree(part / "state" / "step-00000004")
    os.utime(part / "last" / "model.safetensors", (0, 0))
    done = run(cache, "--resume", "--out", str(part))
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("finished after 4 steps")
    assert (part / "last" / "model.safetensors").stat().st_mtime > 0
    wanted = open_any(whole / "last").weights
    for name, tensor in open_any(part / "last").weights.items():
        assert torch.equal(tensor, wanted[name]), name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--graph", "both"], "graph must be uniform or absorb, not 'both'"),
        (["--graph", "uniform", "--masking", "count"], "--masking count needs --graph absorb"),
        (["--noise", "loglinear", "--sigma-max", "5"], "sigma_max"),
        (["--noise", "wavy"], "wavy"),
        (["--t-min", "0.1"], "--t-min"),
        (["--block-size", "1"], "2 positions or more"),
        (["--block-size", "7"], "7"),
        (["--size", "giant"], "giant"),
        (["--condition-dim", "0"], "condition_dim must be a positive integer"),
        (["--family", "mdlm", "--graph", "uniform"], "graph"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_are_one_line_and_status_2(
    stories: Path, cache: Path, tmp_path, options, words
):
    shape = [] if "--size" in options else SHAPE
    shape = shape[:-2] if "--condition-dim" in options or "mdlm" in options else shape
    family = [] if "--family" in options else FAMILY
    given = ["--data", str(stories), "--out", str(tmp_path / "x"), "--max-steps", "1"]
    result = run(cache, *given, *family, *QUICK, *shape, *options)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
