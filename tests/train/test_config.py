from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from dlm_edge.runtime.errors import CheckpointError, ConfigError
from dlm_edge.train.config import DEFAULT_STEPS, ON_RESUME, TrainConfig, load_settings, save_config


def config(**changes) -> TrainConfig:
    return TrainConfig(**{"family": "mdlm", "out": "run", "data": "a.txt", **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.0}, "--lr must be above 0"),
        ({"max_steps": 0}, "--max-steps"),
        ({"ema": 1.0}, "ema"),
        ({"seed": -1}, "seed"),
        ({"valid_percent": 100.0}, "--valid-percent"),
        ({"optimizer": "sgd"}, "muon, adamw"),
        ({"precision": "int8"}, "bf16, fp16, fp32"),
        ({"batch_size": 6, "accumulate": 4}, "multiple of --devices x --accumulate"),
        ({"strategy": "ddp"}, "--devices 2"),
        ({"strategy": "fsdp", "devices": 2}, "adamw or ddp"),
    ],
)
def test_a_setting_out_of_range_is_named(changes: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_a_run_without_limits_has_a_default_length():
    assert config().num_steps == DEFAULT_STEPS
    assert config(max_minutes=3.0).num_steps is None
    assert config(max_minutes=3.0, max_steps=7).num_steps == 7


def test_saved_settings_make_the_same_run(tmp_path: Path):
    path = tmp_path / "train.json"
    wanted = config(options={"size": "tiny"}, lr=0.1)
    save_config(wanted, path)
    assert TrainConfig(**load_settings(path)) == wanted


@pytest.mark.parametrize("text", ["{", "[]", '{"new_key": 1}'])
def test_damaged_or_foreign_settings_are_refused(tmp_path: Path, text: str):
    path = tmp_path / "train.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match="start a new run"):
        load_settings(path)


def test_every_setting_says_what_happens_when_it_changes_on_resume():
    assert set(ON_RESUME) == {item.name for item in fields(TrainConfig)}
