"""Checkpoints of others that cannot be started from: refused in one line that says why."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from dlm_edge.runtime.errors import CheckpointError, ConfigError
from dlm_edge.train.checkpoints.checkpoint import read_config
from dlm_edge.train.checkpoints.convert import convert
from dlm_edge.train.checkpoints.start import read_start
from public_folders import make_public
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}))


def without(folder: Path, *names: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if k not in names}, folder / "model.safetensors")


def with_extra(folder: Path, *names: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    extra = {name: torch.zeros(3) for name in names}
    save_file({**tensors, **extra}, folder / "model.safetensors")


def with_tensor(folder: Path, name: str, tensor: torch.Tensor) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, name: tensor}, folder / "model.safetensors")


FAULTS = {
    "missing": (
        lambda f: without(f, "model.layers.1.self_attn.k_proj.bias"),
        "tensor model.layers.1.self_attn.k_proj.bias is missing",
    ),
    "several missing": (
        lambda f: without(f, *(f"model.layers.{i}.mlp.up_proj.weight" for i in range(3))),
        "tensors model.layers.0.mlp.up_proj.weight, .* are missing",
    ),
    "extra": (
        lambda f: with_extra(f, "model.layers.7.spare", "visual.patch"),
        "tensors model.layers.7.spare, visual.patch are not of a qwen2 model",
    ),
    "rope scaling": (
        lambda f: edit_config(f, rope_scaling={"type": "yarn", "factor": 4.0}),
        "rotary scaling 'yarn' is not supported",
    ),
    "new rope scaling": (
        lambda f: edit_config(f, rope_parameters={"rope_type": "llama3", "rope_theta": 1e4}),
        "rotary scaling of Llama 3 lacks factor",
    ),
    "architecture": (
        lambda f: edit_config(f, architectures=["GemmaForCausalLM"], model_type="gemma"),
        "architecture 'GemmaForCausalLM' is not supported",
    ),
    "window": (lambda f: edit_config(f, use_sliding_window=True), "sliding-window attention"),
    "quantised": (
        lambda f: edit_config(f, quantization_config={"quant_method": "gptq"}),
        "weights are quantised .gptq.",
    ),
    "rows": (
        lambda f: edit_config(f, vocab_size=300),
        "model.embed_tokens.weight has 260 rows, and vocab_size of config.json is 300",
    ),
    "width": (
        lambda f: edit_config(f, intermediate_size=72),
        "mlp.gate_proj.weight is .80, 48., config.json makes it .72, 48.",
    ),
    "no size": (lambda f: edit_config(f, hidden_size=None), "hidden_size is missing"),
    "word for a scaling": (
        lambda f: edit_config(f, rope_scaling="yarn"),
        "config.json describes no model",
    ),
    "word for a number": (
        lambda f: edit_config(f, rms_norm_eps="small"),
        "config.json describes no model .could not convert string",
    ),
    "heads": (
        lambda f: edit_config(f, num_key_value_heads=4),
        "config.json describes no model .model num_kv_heads 4 must divide num_heads 6",
    ),
    "whole numbers": (
        lambda f: with_tensor(f, "model.norm.weight", torch.ones(48, dtype=torch.int8)),
        "tensor model.norm.weight is of int8, no weights in floating point",
    ),
    "another head": (
        lambda f: edit_config(f, tie_word_embeddings=True),
        "lm_head.weight is another matrix than model.embed_tokens.weight",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "pickled weights": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        r"weights are in pytorch_model\*.bin only",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    "bad tokenizer": (
        lambda f: (f / "tokenizer.json").write_text("{}"),
        "tokenizer.json is damaged",
    ),
    "bad index": (
        lambda f: (f / "model.safetensors").rename(f / "model.safetensors.index.json"),
        "not an index of weights",
    ),
}


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_checkpoint_that_cannot_be_used_is_one_line_naming_why(tmp_path, sound, fault):
    folder = tmp_path / "broken"
    shutil.copytree(sound, folder)
    damage, message = FAULTS[fault]
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        convert(str(folder), str(tmp_path / "ours"), "tidar", {}, 32)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ours").exists()


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused(tmp_path):
    make_public(tmp_path / "theirs", vocab_size=200)
    with pytest.raises(CheckpointError, match=r"the tokenizer has 257 ids, the embedding 200 rows"):
        read_start(tmp_path / "theirs")


def test_another_tokenizer_than_the_checkpoints_is_refused(tmp_path, sound, settings):
    from dlm_edge.train.loop.run import train

    config = settings(init=str(sound), family="tidar", options={}, tokenizer="bpe")
    with pytest.raises(ConfigError, match="--tokenizer is another one than that of --init"):
        train(config, quiet=True)


def test_a_public_folder_is_no_checkpoint_of_ours_and_says_what_to_do(sound):
    with pytest.raises(
        CheckpointError, match="export it as it is, or give it to dlm-train as --init"
    ):
        read_config(sound)
