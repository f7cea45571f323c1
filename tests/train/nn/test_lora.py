"""Adapters beside frozen weights, and layers computed twice to keep less."""

import json
import re
import sys

import pytest
import torch
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.train.checkpoints.convert import open_any
from dlm_edge.train.data.batches import Batch
from dlm_edge.train.families import FAMILIES
from dlm_edge.train.loop.run import _fit, train
from dlm_edge.train.nn import transformer
from tiny_checkpoint import CONTEXT, make_checkpoint

MASK = 1
QWEN = {"backbone": "qwen2", "num_heads": 4, "num_kv_heads": 2, "block_sizes": "4"}


@pytest.fixture
def begun(tmp_path):
    """An untrained TiDAR to start from, tied and with biases."""
    make_checkpoint(tmp_path / "begun", "tidar", mask_token_id=MASK, tie_embeddings=True, **QWEN)
    return tmp_path / "begun"


@pytest.fixture
def changes(begun):
    """Settings of a run from it."""
    return {
        "family": "tidar",
        "init": str(begun),
        "tokenizer": str(begun),
        "context": CONTEXT,
        "options": {"block_sizes": "4"},
        "optimizer": "adamw",
        "lr": 1e-2,
    }


def both(first, second):
    one, other = (open_any(folder).weights for folder in (first, second))
    assert set(one) == set(other)
    return [(name, one[name], other[name]) for name in one]


def test_adapters_change_their_layers_and_the_masks_row_and_nothing_else(
    settings, changes, begun, tmp_path
):
    pytest.importorskip("peft")
    train(settings(**changes, lora=2, max_steps=4, ema=0.0), quiet=True)
    for name, before, after in both(begun, tmp_path / "run" / "last"):
        if name in ("embed.weight", "head.weight"):
            changed = (before != after).any(dim=1).nonzero().flatten().tolist()
            assert changed == [MASK], name
        elif name.endswith(("qkv.weight", "out.weight", "gate_up.weight", "down.weight")):
            rank = torch.linalg.matrix_rank(after - before, atol=1e-5, rtol=0.0)
            assert 1 <= int(rank) <= 2, name
        else:
            assert torch.equal(before, after), name


def test_the_merged_checkpoint_computes_what_the_adapters_do(settings, changes, tmp_path):
    pytest.importorskip("peft")
    config = settings(**changes, lora=3, max_steps=5, eval_every=5, ema=0.0, eval_rows=4)
    summary = train(config, quiet=True)
    checkpoint = open_any(tmp_path / "run")
    plain = settings(
        **{**changes, "init": str(tmp_path / "run"), "lr": 1e-12},
        max_steps=1,
        ema=0.0,
        weight_decay=0.0,
        out=str(tmp_path / "plain"),
    )
    again = train(plain, quiet=True)
    assert set(checkpoint.weights) == set(open_any(tmp_path / "begun").weights)
    for name, item in summary["held_out"].items():
        expected = item["nats_per_token"]
        assert again["held_out"][name]["nats_per_token"] == pytest.approx(expected, rel=1e-5)


def test_an_interrupted_run_with_adapters_resumes_to_bit_identical_weights(
    settings, changes, tmp_path
):
    pytest.importorskip("peft")
    given = {**changes, "lora": 2, "ema": 0.9, "precision": "bf16"}
    train(settings(**given, max_steps=4, min_lr_ratio=1.0, out=str(tmp_path / "whole")), quiet=True)
    for steps in (2, 4):
        config = settings(**given, max_steps=steps, min_lr_ratio=1.0, out=str(tmp_path / "parts"))
        train(config, resume=steps == 4, quiet=True)
    for name, one, other in both(tmp_path / "whole" / "last", tmp_path / "parts" / "last"):
        assert torch.equal(one, other), name


def test_without_peft_one_line_says_what_to_install(settings, changes, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"--lora needs the package peft .*dlm-edge\[lora\]"):
        train(settings(**changes, lora=2), quiet=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lora": 0}, "--lora 0 must be at least 1"),
        ({"lora": 2, "lora_scale": 0.0}, "--lora-scale 0.0 above 0"),
        ({"lora": 2, "init": None}, "give them with --init"),
        ({"lora": 2, "optimizer": "muon"}, "use adamw"),
    ],
)
def test_settings_that_make_no_sense_with_adapters_are_refused(settings, changes, wrong, message):
    with pytest.raises(ConfigError, match=message):
        settings(**{**changes, **wrong})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_layers_computed_twice_give_the_same_weights(settings, changes, tmp_path, precision):
    for name, recompute in (("once", False), ("twice", True)):
        options = {"recompute": recompute, "precision": precision, "out": str(tmp_path / name)}
        train(settings(**changes, **options, max_steps=3), quiet=True)
    for name, one, other in both(tmp_path / "once" / "last", tmp_path / "twice" / "last"):
        assert torch.equal(one, other), name


def test_layers_are_indeed_computed_twice():
    config = FAMILIES["tidar"].make_config(
        {"dim": 16, "num_layers": 3, "num_heads": 2, "vocab_size": 9, "context": 8,
         "eos_token_id": 0, "mask_token_id": 1}
    )  # fmt: skip
    model, calls = FAMILIES["tidar"].make_model(config["model"]), []
    for layer in model.trunk.layers:
        layer.attention.register_forward_hook(lambda *_: calls.append(1))
    model.trunk.recompute = True
    ids, generator = torch.randint(2, 9, (2, 8)), torch.Generator()
    FAMILIES["tidar"].loss(model.train(), Batch(ids=ids), generator, config).loss.backward()
    assert len(calls) == 6
    FAMILIES["tidar"].eval_loss(model.eval(), Batch(ids=ids), config, seed=0)
    assert len(calls) == 9


def test_a_model_whose_layers_cannot_be_computed_twice_is_refused(settings):
    with pytest.raises(ConfigError, match="--recompute: models of family sedd cannot"):
        _fit(torch.nn.Linear(2, 2), {}, settings(family="sedd", recompute=True))


def test_conditioned_layers_computed_twice_give_the_same_gradients():
    options = {"dim": 16, "num_layers": 2, "num_heads": 2, "vocab_size": 24, "context": 8}
    family = FAMILIES["sedd"]
    config = family.make_config({**options, "eos_token_id": 0, "mask_token_id": 1})
    ids, found = torch.randint(2, 24, (2, 8)), []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = family.make_model(config["model"]).train()
        model.trunk.recompute = recompute
        family.loss(model, Batch(ids=ids), torch.Generator().manual_seed(1), config).loss.backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_losses_by_the_slice_are_the_losses_of_one_go_with_their_gradients(monkeypatch):
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50, bias=False)
    hidden, targets = torch.randn(33, 8, requires_grad=True), torch.randint(0, 48, (33,))
    sizes, found = [], []
    head.register_forward_hook(lambda _, __, logits: sizes.append(len(logits)))
    for largest in (2**26, 500):
        monkeypatch.setattr(transformer, "LARGEST", largest)
        losses = transformer.nats_of(head, hidden, targets, (49,))
        grads = torch.autograd.grad(losses.square().sum(), [hidden, head.weight])
        found.append((losses.detach(), *grads))
    assert sizes[:5] == [33, 10, 10, 10, 3]
    assert sorted(sizes[5:]) == [3, 10, 10, 10]  # once more in the backward pass
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("lora", [False, True])
def test_two_processes_train_a_qwen_tidar_as_one_does(
    stories, command, begun, tmp_path, strategy, lora
):
    if lora:
        pytest.importorskip("peft")
    given = ["--family", "tidar", "--init", str(begun), "--block-size", "2,4", "--data",
             str(stories), "--context", str(CONTEXT), "--batch-size", "4", "--eval-rows", "4",
             "--warmup-steps", "2", "--optimizer", "adamw", "--recompute", "--log", "none",
             *(["--lora", "2"] if lora else [])]  # fmt: skip
    curves = []
    for devices in ([], ["--devices", "2", "--strategy", strategy]):
        out, losses = tmp_path / f"run{len(devices)}", []
        for more in (["--max-steps", "4"], ["--max-steps", "6", "--resume"]):
            process = command(*given, "--out", str(out), *devices, *more, "--json", "-v")
            stdout, err = process.communicate(timeout=600)
            assert process.returncode == 0, err
            losses += [float(found) for found in re.findall(r"^loss: (\S+)$", err, re.MULTILINE)]
        figures = json.loads(stdout.splitlines()[-1])["held_out"]
        curves.append([*losses, *(figures[name]["nats_per_token"] for name in sorted(figures))])
    assert len(curves[0]) == 6 + 3
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
