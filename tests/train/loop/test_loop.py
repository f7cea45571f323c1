from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from dlm_edge.runtime.errors import CheckpointError, ConfigError
from dlm_edge.train.checkpoints.checkpoint import saved_states
from dlm_edge.train.checkpoints.convert import open_any
from dlm_edge.train.config import SETTINGS
from dlm_edge.train.loop import loop as loop_module
from dlm_edge.train.loop.loop import DivergedError
from dlm_edge.train.loop.run import train


def weights(out: str) -> dict[str, torch.Tensor]:
    return open_any(Path(out) / "last").weights


def assert_equal(first: str, second: str) -> None:
    a, b = weights(first), weights(second)
    assert set(a) == set(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_run_learns_and_says_what_it_made(settings, optimizer: str):
    config = settings(max_steps=40, eval_every=20, lr=1e-2, optimizer=optimizer, ema=0.9)
    summary = train(config, quiet=True)
    assert summary["status"] == "finished"
    assert summary["steps"] == 40
    assert summary["tokens_seen"] == 40 * 4 * 16
    assert set(summary["held_out"]) == {"8", "full"}
    for item in summary["held_out"].values():
        assert item["nats_per_token"] < math.log(280) - 0.5
        assert item["perplexity_low"] < item["perplexity"] < item["perplexity_high"]
    found = open_any(config.out)
    assert found.config["training"]["tokens_seen"] == summary["best_step"] * 4 * 16
    assert found.config["training"]["settings"]["lr"] == 1e-2


def test_the_causal_family_trains_with_the_same_loop(settings):
    options = {"dim": 16, "num_layers": 1, "num_heads": 2}
    summary = train(settings(family="ar", options=options), quiet=True)
    assert set(summary["held_out"]) == {"ar"}


def test_an_evaluation_logs_texts_and_their_figures_and_changes_no_weight(settings, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    changes = {"max_steps": 4, "eval_every": 2, "log": "tensorboard"}
    changes["options"] = {**settings().options, "dropout": 0.1}
    with_texts, without = (
        settings(out=str(tmp_path / str(number)), samples=number, **changes) for number in (2, 0)
    )
    for config in (with_texts, without):
        train(config, quiet=True)
    assert_equal(with_texts.out, without.out)
    found = EventAccumulator(f"{with_texts.out}/logs").Reload()
    assert [event.step for event in found.Scalars("samples/entropy")] == [2, 4]
    assert all(event.value > 0 for event in found.Scalars("samples/entropy"))
    (tag,) = (name for name in found.Tags()["tensors"] if name.startswith("samples"))
    (text,) = found.Tensors(tag)[0].tensor_proto.string_val
    assert b"---" in text
    assert not EventAccumulator(f"{without.out}/logs").Reload().Tags()["tensors"]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_resumed_run_ends_with_bit_identical_weights(settings, tmp_path: Path, optimizer: str):
    options = {**settings().options, "dropout": 0.1}
    changes = {"optimizer": optimizer, "options": options}
    whole = settings(out=str(tmp_path / "whole"), **changes)
    train(whole, quiet=True)
    config = settings(out=str(tmp_path / "parts"), **changes)

    class Killed(BaseException):
        pass

    step, count = loop_module.Loop._step, [0]

    def die(self):
        count[0] += 1
        if count[0] == 6:
            raise Killed
        return step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_module.Loop, "_step", die)
        with pytest.raises(Killed):
            train(config, quiet=True)
    assert train(config, resume=True, quiet=True)["steps"] == 6
    assert_equal(whole.out, config.out)


def test_a_clock_that_sees_no_time_pass_stops_no_run(settings, monkeypatch):
    monkeypatch.setattr(loop_module, "time", SimpleNamespace(monotonic=lambda: 7.0))
    assert train(settings(max_steps=10), quiet=True)["steps"] == 10


def test_accumulation_gives_the_weights_of_one_large_batch(settings, tmp_path: Path):
    # Muon orthogonalises in bfloat16, which magnifies rounding beyond a tight tolerance.
    one = settings(out=str(tmp_path / "one"), optimizer="adamw")
    four = settings(out=str(tmp_path / "four"), optimizer="adamw", accumulate=4)
    train(one, quiet=True)
    train(four, quiet=True)
    a, b = weights(one.out), weights(four.out)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-2, atol=1e-4)


def test_a_run_starts_from_another_checkpoint_of_its_shape(settings, tmp_path: Path):
    first = settings(out=str(tmp_path / "first"))
    train(first, quiet=True)
    changes = {"init": first.out, "lr": 1e-12, "max_steps": 1, "ema": 0.0}
    second = settings(out=str(tmp_path / "second"), **changes)
    train(second, quiet=True)
    begun = open_any(first.out).weights
    for name, tensor in weights(second.out).items():
        torch.testing.assert_close(tensor, begun[name], rtol=1e-5, atol=1e-6)
    wide = settings(out=str(tmp_path / "wide"), init=first.out,
                    options={**first.options, "dim": 32})  # fmt: skip
    with pytest.raises(CheckpointError, match="the model needs"):
        train(wide, quiet=True)


def test_a_state_of_another_shape_is_refused(settings):
    config = settings()
    train(config, quiet=True)
    (Path(config.out) / SETTINGS).unlink()
    with pytest.raises(CheckpointError, match="another model, optimizer or version"):
        train(settings(options={**config.options, "dim": 32}), resume=True, quiet=True)


def test_a_state_of_another_version_is_refused(settings):
    config = settings()
    train(config, quiet=True)
    path = saved_states(Path(config.out))[-1] / "state.pt"
    state = torch.load(path, weights_only=True)
    state["standing"] = state.pop("run_state")
    torch.save(state, path)
    with pytest.raises(CheckpointError, match="or version"):
        train(config, resume=True, quiet=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "ar"}, "has --family mdlm, not ar"),
        ({"optimizer": "adamw"}, "has --optimizer muon, not adamw"),
        ({"batch_size": 8}, "has --batch-size 4, not 8"),
        ({"context": 8}, "has --context 16, not 8"),
        ({"seed": 1}, "has --seed 0, not 1"),
        ({"options": {"block_sizes": "4"}}, "has --block-size 8,full, not 4"),
        ({"options": {"num_layers": 2}}, "has --layers 1, not 2"),
    ],
)
def test_what_a_run_is_cannot_change_when_it_is_resumed(settings, changes: dict, message: str):
    train(settings(), quiet=True)
    before = weights(settings().out)
    with pytest.raises(ConfigError, match=message + ".*--init"):
        train(settings(max_steps=9, **changes), resume=True, quiet=True)
    for name, tensor in weights(settings().out).items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    "changes",
    [{"weight_decay": 5.0}, {"beta1": 0.1}, {"lr": 1e-2}, {"clip_norm": 1e-3}, {"ema": 0.0}],
)
def test_other_settings_apply_from_the_resumed_step_on_and_are_said(
    settings, tmp_path: Path, changes: dict, capsys
):
    plain, changed = (settings(out=str(tmp_path / name)) for name in ("plain", "changed"))
    for config in (plain, changed):
        train(config, quiet=True)
    train(replace(plain, max_steps=9), resume=True, quiet=True)
    train(replace(changed, max_steps=9, **changes), resume=True)
    (name, value) = next(iter(changes.items()))
    assert f"from step 6 on: --max-steps 9 (before: 6), --{name.replace('_', '-')} {value}" in (
        capsys.readouterr().err
    )
    a, b = weights(plain.out), weights(changed.out)
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_an_average_that_begins_on_resume_begins_with_the_weights(settings):
    config = settings(ema=0.0)
    train(config, quiet=True)
    before = weights(config.out)
    train(settings(ema=0.9, max_steps=7, lr=1e-20), resume=True, quiet=True)
    for name, tensor in weights(config.out).items():
        torch.testing.assert_close(tensor, before[name])


def test_a_run_is_not_continued_on_another_text(settings, stories: Path, tmp_path: Path):
    train(settings(), quiet=True)
    other = tmp_path / "other.txt"
    other.write_text(stories.read_text("utf-8") + "<|endoftext|>One more.")
    with pytest.raises(CheckpointError, match="the tokenizer has changed"):
        train(settings(data=str(other)), resume=True, quiet=True)


def test_divergence_is_one_clear_line_and_keeps_the_last_checkpoint(settings):
    config = settings(lr=1e30, clip_norm=0.0, max_steps=50, warmup_steps=20)
    with pytest.raises((DivergedError, CheckpointError), match="diverged"):
        train(config, quiet=True)
    good = settings()
    train(good, quiet=True)
    before = weights(good.out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_module.Loop, "_mean", lambda *_: math.nan)
        with pytest.raises(DivergedError, match=r"nan at step 6.*saved checkpoint is kept"):
            train(settings(max_steps=9), resume=True, quiet=True)
    for name, tensor in weights(good.out).items():
        assert torch.equal(tensor, before[name])


def test_early_stop_waits_for_patience_evaluations(settings):
    config = settings(max_steps=50, eval_every=1, patience=2, lr=1e-20, ema=0.0)
    summary = train(config, quiet=True)
    assert summary["status"] == "early stop"
    assert summary["steps"] < 10


def test_the_clock_ends_a_run_and_anneals_towards_that_end(settings, monkeypatch):
    ticks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: next(ticks) / 64)
    monkeypatch.setattr(loop_module, "time", clock)
    config = settings(max_steps=None, max_minutes=0.02, eval_every=0)
    summary = train(config, quiet=True)
    assert summary["status"] == "finished"
    # 1.2 s, less than an evaluation and more than one step apart from it
    assert 1.0 <= summary["seconds"] <= 1.3
    assert summary["held_out"]


def test_evaluation_and_saving_count_in_the_minutes(settings, monkeypatch, capsys):
    now, measured = [0.0], []
    monkeypatch.setattr(loop_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    step, measure = loop_module.Loop._step, loop_module.measure

    def slow_step(self):
        now[0] += 5
        return step(self)

    def slow_measure(family, model, config, rows, **rest):
        now[0] += 3 * len(rows)
        measured.append(len(rows))
        return measure(family, model, config, rows, **rest)

    monkeypatch.setattr(loop_module.Loop, "_step", slow_step)
    monkeypatch.setattr(loop_module, "measure", slow_measure)
    summary = train(settings(max_steps=None, max_minutes=1.0, eval_every=0))
    said = capsys.readouterr().err
    assert "evaluation: 4 of 4" not in said
    assert "a step takes 5.0 s: --max-minutes 1 ends after about 9 steps, too few" in said
    assert 55 <= summary["seconds"] <= 65
    assert summary["held_out"]
    monkeypatch.setattr(loop_module, "EVAL_SHARE", 0.1)
    summary = train(settings(out=f"{settings().out}2", max_steps=None, max_minutes=1.0))
    assert "evaluation: 2 of 4 held-out sequences, at 3.0 s each" in capsys.readouterr().err
    assert summary["seconds"] <= 65
    measured.clear()
    longer = settings(out=f"{settings().out}2", max_steps=None, max_minutes=3.0)
    assert train(longer, resume=True)["steps"] > summary["steps"]
    assert measured[-1] == 2  # as before, or the best figures would not compare


def test_curves_are_written_for_tensorboard(settings):
    pytest.importorskip("tensorboard")
    config = settings(log="tensorboard", max_steps=10)
    train(config, quiet=True)
    assert list((Path(config.out) / "logs").glob("events.*"))


def test_half_precision_without_a_gpu_is_refused(settings):
    if torch.cuda.is_available():
        pytest.skip("has a GPU")
    with pytest.raises(ConfigError, match="needs a GPU"):
        train(settings(precision="fp16"), quiet=True)


@pytest.mark.parametrize("accelerator", ["cuda", "mps"])
def test_an_accelerator_that_is_not_here_is_refused(settings, monkeypatch, accelerator):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=f"--accelerator {accelerator}"):
        train(settings(accelerator=accelerator), quiet=True)


def test_bfloat16_trains_close_to_float32(settings, tmp_path: Path):
    narrow = settings(out=str(tmp_path / "bf16"), precision="bf16")
    wide = settings(out=str(tmp_path / "fp32"))
    a = train(narrow, quiet=True)["held_out"]["full"]["nats_per_token"]
    b = train(wide, quiet=True)["held_out"]["full"]["nats_per_token"]
    assert a == pytest.approx(b, rel=0.02)


def test_an_unknown_family_is_refused(settings):
    with pytest.raises(ConfigError, match="mdlm"):
        train(settings(family="gpt"), quiet=True)
