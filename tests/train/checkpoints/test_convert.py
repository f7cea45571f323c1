"""The command on what it starts from: conversion without data, and training."""

import json
import shutil

import pytest
from click.testing import CliRunner
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.train.checkpoints.convert import convert, open_any
from dlm_edge.train.cli import main
from dlm_edge.train.config import TrainConfig, load_settings
from dlm_edge.train.loop.run import train
from public_folders import make_public, tokenizer_without_mask
from tokenizers import Tokenizer

transformers = pytest.importorskip("transformers")


def run(*arguments: str):
    return CliRunner().invoke(main, [*arguments])


def test_the_command_converts_without_data_and_says_where(tmp_path, sound):
    given = ["--family", "tidar", "--init", str(sound), "--max-steps", "0"]
    result = run(*given, "--block-size", "4,8", "--out", str(tmp_path / "ours"))
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == f"checkpoint: {tmp_path / 'ours'}"
    assert open_any(tmp_path / "ours").config["block_sizes"] == [4, 8]
    result = run(*given, "--out", str(tmp_path / "json"), "--json")
    summary = json.loads(result.stdout)
    assert (summary["status"], summary["steps"]) == ("converted", 0)


def test_the_command_trains_with_the_tokenizer_of_what_it_starts_from(tmp_path, sound, stories):
    result = run(
        *("--family", "tidar", "--init", str(sound), "--data", str(stories), "--context", "16"),
        *("--block-size", "4", "--batch-size", "4", "--max-steps", "1", "--eval-rows", "2"),
        *("--log", "none", "--cache-dir", str(tmp_path / "cache"), "--out", str(tmp_path / "run")),
    )
    assert result.exit_code == 0, result.output
    checkpoint = open_any(tmp_path / "run")
    assert checkpoint.config["vocab_size"] == 260
    assert Tokenizer.from_str(checkpoint.tokenizer_json).token_to_id("<|mask|>") == 257


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--out", "x"], "--max-steps 0 only converts: give --init (what) and --out (where)"),
        (["--init", "SOUND"], "--max-steps 0 only converts"),
        (["--init", "SOUND", "--out", "SOUND"], "is the folder of --init"),
        (["--init", "SOUND", "--out", "x", "--family", "tidal"], "choose one of mdlm, ar"),
        (["--init", "SOUND", "--out", "x", "--heads", "4"], "choose the same shape"),
        (["--init", "nowhere", "--out", "x"], "no checkpoint here"),
    ],
)
def test_what_cannot_be_converted_is_one_line(sound, tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    words = [str(sound) if word == "SOUND" else word for word in given]
    family = [] if "--family" in words else ["--family", "tidar"]
    result = run(*family, "--max-steps", "0", *words)
    assert result.exit_code in (1, 2)
    # What became of the mask may be said before.
    assert message in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "x").exists()


def test_converting_claims_no_positions_that_the_model_does_not_know(tmp_path):
    make_public(tmp_path / "theirs")
    convert(str(tmp_path / "theirs"), str(tmp_path / "ours"), "tidar", {}, None)
    assert open_any(tmp_path / "ours").config["model"]["context"] == 64
    with pytest.raises(ConfigError, match="--context 65: the checkpoint knows 64 positions"):
        convert(str(tmp_path / "theirs"), str(tmp_path / "more"), "tidar", {}, 65)
    result = run(
        *("--family", "tidar", "--init", str(tmp_path / "theirs"), "--max-steps", "0"),
        *("--out", str(tmp_path / "plain")),
    )
    assert result.exit_code == 0, result.output
    assert open_any(tmp_path / "plain").config["model"]["context"] == 64


def test_a_qwen_model_is_trained_and_resumed_without_its_source(tmp_path, sound, settings):
    folder = tmp_path / "source"
    shutil.copytree(sound, folder)
    changes = {"family": "tidar", "options": {"block_sizes": "4"}, "init": str(folder)}
    own = tmp_path / "tokenizer.json"
    own.write_text(tokenizer_without_mask(), encoding="utf-8")
    config = settings(**changes, tokenizer=str(own), max_steps=2, out=str(tmp_path / "run"))
    train(config, quiet=True)
    shutil.rmtree(folder)
    kept = load_settings(tmp_path / "run" / "train.json")
    summary = train(TrainConfig(**{**kept, "max_steps": 4}), resume=True, quiet=True)
    assert (summary["steps"], set(summary["held_out"])) == (4, {"ar", "draft 4"})
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "last")
    assert open_any(tmp_path / "run").config["model"]["rope_theta"] == 50_000.0
