"""From Hugging Face's folders to ours and back, held to transformers' own models."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from dlm_edge.runtime.errors import CheckpointError, ConfigError
from dlm_edge.train.checkpoint import load_weights, read_checkpoint
from dlm_edge.train.cli import main
from dlm_edge.train.convert import convert
from dlm_edge.train.families import FAMILIES
from dlm_edge.train.nn.block_step import BlockStep
from dlm_edge.train.nn.masks import causal_mask
from dlm_edge.train.start import read_start
from qwen_folders import make_qwen, tokenizer_without_mask
from safetensors.torch import load_file, save_file
from tiny_checkpoint import make_checkpoint
from tokenizers import Tokenizer

transformers = pytest.importorskip("transformers")

WORST = 1e-5
"""Largest error of a logit over the largest logit, in float32."""
KINDS = {
    "tied": ("qwen2", {"tie_word_embeddings": True}),
    "untied": ("qwen2", {"tie_word_embeddings": False}),
    "wide heads": ("qwen3", {"tie_word_embeddings": True}),
    "one kv head": ("qwen2", {"num_key_value_heads": 1, "rms_norm_eps": 1e-3}),
}


def ours(folder: Path):
    checkpoint = read_checkpoint(folder)
    model = FAMILIES[checkpoint.config["family"]].make_model(checkpoint.config["model"]).eval()
    load_weights(model, checkpoint)
    return model


def text(length: int = 40) -> torch.Tensor:
    return torch.randint(2, 257, (1, length), generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def uncached(model, ids):
    length = ids.shape[1]
    return model(ids, torch.arange(length), causal_mask(length, ids.device))


@torch.no_grad()
def cached(model, ids, sizes):
    """Logits of the block step, in blocks of these sizes, over a cache with rubbish behind."""
    step, shape = BlockStep(model).eval(), model.config
    rows = (ids.shape[1] + 3, 1, shape.num_layers, 2, shape.num_kv_heads, shape.head_dim)
    cache, parts, start = torch.full(rows, 9.0), [], 0
    for size in sizes:
        at = torch.tensor([start], dtype=torch.int32)
        logits, new = step(ids[:, start : start + size].int(), at, cache)
        cache[start : start + size] = new
        parts.append(logits)
        start += size
    return torch.cat(parts, dim=1)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_logits_are_those_of_transformers_before_and_after_the_way_back(tmp_path, kind):
    backbone, changes = KINDS[kind]
    theirs = make_qwen(tmp_path / "theirs", backbone, **changes)
    convert(str(tmp_path / "theirs"), str(tmp_path / "ours"), "tidar", {}, 32)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    ids = text()
    with torch.no_grad():
        expected = theirs(ids).logits
        returned = again(ids).logits
    model = ours(tmp_path / "ours")
    known = [index for index in range(260) if index != 257]  # the mask's row is a new one
    for found in (uncached(model, ids), cached(model, ids, [16, 1, 1, 9, 13]), returned):
        assert error(found[..., known], expected[..., known]) <= WORST
    assert error(uncached(model, ids), returned) <= WORST


def test_tensors_come_back_bit_for_bit_but_for_the_masks_row(tmp_path):
    make_qwen(tmp_path / "theirs", tie_word_embeddings=False)
    convert(str(tmp_path / "theirs"), str(tmp_path / "ours"), "ar", {}, 32)
    before = load_file(tmp_path / "theirs" / "model.safetensors")
    after = load_file(tmp_path / "ours" / "model.safetensors")
    assert set(before) == set(after)
    for name, tensor in before.items():
        rows = [row for row in range(len(tensor)) if tensor.shape[0] != 260 or row != 257]
        assert torch.equal(after[name][rows], tensor[rows]), name
        if len(rows) < len(tensor):
            torch.testing.assert_close(after[name][257], tensor[:257].mean(dim=0))


def test_parts_with_an_index_read_as_one_file_does(tmp_path):
    make_qwen(tmp_path / "parts", shard="40KB")
    make_qwen(tmp_path / "one")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    parts, one = (read_start(tmp_path / name).checkpoint.weights for name in ("parts", "one"))
    assert set(parts) == set(one)
    assert all(torch.equal(parts[name], one[name]) for name in one)


def test_a_name_of_the_hub_brings_parts_and_companions(tmp_path, monkeypatch):
    import huggingface_hub.constants as hub_constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--qwen"
    folder = repository / "snapshots" / commit
    make_qwen(folder, shard="40KB")
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ x }}"}')
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    convert("someone/qwen", str(tmp_path / "ours"), "tidar", {}, 32)
    assert "chat_template" in (tmp_path / "ours" / "tokenizer_config.json").read_text("utf-8")
    assert ours(tmp_path / "ours").config.dim == 48


def test_a_mask_is_added_in_a_spare_row_or_a_new_one_and_said(tmp_path, capsys):
    make_qwen(tmp_path / "spare")
    convert(str(tmp_path / "spare"), str(tmp_path / "first"), "tidar", {}, 32)
    said = capsys.readouterr().err
    assert "added to the tokenizer: <|mask|>" in said
    assert "spare row 257 of 260" in said
    make_qwen(tmp_path / "full", vocab_size=257)
    convert(str(tmp_path / "full"), str(tmp_path / "second"), "tidar", {}, 32)
    assert "new row 257" in capsys.readouterr().err
    for name, rows in (("first", 260), ("second", 258)):
        checkpoint = read_checkpoint(tmp_path / name)
        tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json)
        assert tokenizer.token_to_id("<|mask|>") == 257 == checkpoint.config["mask_token_id"]
        assert checkpoint.config["vocab_size"] == rows == len(checkpoint.weights["embed.weight"])


@pytest.mark.parametrize("rows", [255, 256, 300])
def test_an_end_of_text_token_is_added_like_a_mask_and_its_row_is_no_zero(tmp_path, capsys, rows):
    """A model of 255 ids that has neither: both rows are spare, or new, or one of each."""
    content = json.loads(tokenizer_without_mask())
    content["added_tokens"] = []
    vocab = [token for token in content["model"]["vocab"] if token != "<|endoftext|>"][:255]
    content["model"]["vocab"] = {token: index for index, token in enumerate(vocab)}
    make_qwen(tmp_path / "theirs", vocab_size=rows)
    (tmp_path / "theirs" / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    convert(str(tmp_path / "theirs"), str(tmp_path / "ours"), "tidar", {}, 32)
    assert "added to the tokenizer: <|endoftext|>, <|mask|>" in capsys.readouterr().err
    checkpoint = read_checkpoint(tmp_path / "ours")
    assert [checkpoint.config[f"{name}_token_id"] for name in ("eos", "mask")] == [255, 256]
    for name in ("embed.weight", "head.weight"):
        table = checkpoint.weights[name]
        assert len(table) == max(rows, 257)
        for row in (255, 256):
            torch.testing.assert_close(table[row], table[:255].mean(dim=0))


def test_converting_claims_no_positions_that_the_model_does_not_know(tmp_path):
    make_qwen(tmp_path / "theirs")
    convert(str(tmp_path / "theirs"), str(tmp_path / "ours"), "tidar", {}, None)
    assert read_checkpoint(tmp_path / "ours").config["model"]["context"] == 64
    with pytest.raises(ConfigError, match="--context 65: the checkpoint knows 64 positions"):
        convert(str(tmp_path / "theirs"), str(tmp_path / "more"), "tidar", {}, 65)
    result = run(
        *("--family", "tidar", "--init", str(tmp_path / "theirs"), "--max-steps", "0"),
        *("--out", str(tmp_path / "plain")),
    )
    assert result.exit_code == 0, result.output
    assert read_checkpoint(tmp_path / "plain").config["model"]["context"] == 64


def test_transformers_reads_the_added_mask_and_what_stood_beside_it(tmp_path):
    """Where tokenizer_config.json lists added tokens, transformers goes by that list."""
    make_qwen(tmp_path / "theirs")
    end = {"content": "<|endoftext|>", "special": True}
    given = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {"0": end},
        "chat_template": '{{ "x" }} é',
    }
    (tmp_path / "theirs" / "tokenizer_config.json").write_text(json.dumps(given), encoding="utf-8")
    convert(str(tmp_path / "theirs"), str(tmp_path / "ours"), "tidar", {}, 32)
    found = json.loads((tmp_path / "ours" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert found["chat_template"] == given["chat_template"]
    assert found["added_tokens_decoder"]["0"] == end
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert read.convert_tokens_to_ids("<|mask|>") == 257
    # Again: the mask is there, and nothing changes.
    convert(str(tmp_path / "ours"), str(tmp_path / "again"), "ar", {}, 32)
    again = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert again == found


@pytest.mark.parametrize("text", ["{", "[1]", '{"added_tokens_decoder": 3}'])
def test_a_tokenizers_settings_that_cannot_be_read_stay_as_they_are(tmp_path, text):
    make_qwen(tmp_path / "theirs")
    (tmp_path / "theirs" / "tokenizer_config.json").write_text(text, encoding="utf-8")
    convert(str(tmp_path / "theirs"), str(tmp_path / "ours"), "tidar", {}, 32)
    assert (tmp_path / "ours" / "tokenizer_config.json").read_text(encoding="utf-8") == text


def test_positions_that_a_model_knows_stay_and_shape_options_are_its(tmp_path):
    make_qwen(tmp_path / "theirs")
    convert(str(tmp_path / "theirs"), str(tmp_path / "ours"), "tidar", {"block_sizes": "4"}, 32)
    config = read_checkpoint(tmp_path / "ours").config
    assert (config["model"]["context"], config["model"]["rope_theta"]) == (64, 50_000.0)
    assert config["block_sizes"] == [4]


def test_a_native_causal_checkpoint_becomes_a_qwen2_with_biases_of_zero(tmp_path, capsys):
    make_checkpoint(tmp_path / "ar", "ar", mask_token_id=1)
    convert(str(tmp_path / "ar"), str(tmp_path / "ours"), "tidar", {"backbone": "qwen2"}, 16)
    assert "2 are 0" in capsys.readouterr().err
    first, second = ours(tmp_path / "ar"), ours(tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    ids = text(16)
    with torch.no_grad():
        expected = again(ids).logits
    assert error(uncached(second, ids), expected) <= WORST
    assert error(uncached(first, ids), expected) <= WORST
    assert second.config.norm_eps == first.config.norm_eps == 1e-5


def test_a_masked_model_from_qwen_sees_both_sides_and_keeps_our_format(tmp_path):
    make_qwen(tmp_path / "theirs")
    convert(str(tmp_path / "theirs"), str(tmp_path / "ours"), "mdlm", {"block_sizes": "8"}, 32)
    config = json.loads((tmp_path / "ours" / "config.json").read_text("utf-8"))
    assert "architectures" not in config
    assert (config["model"]["causal"], config["model"]["context"]) == (False, 32)
    assert ours(tmp_path / "ours").config.backbone == "qwen2"


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
        "tensors model.layers.7.spare, visual.patch are not of Qwen2ForCausalLM",
    ),
    "rope scaling": (
        lambda f: edit_config(f, rope_scaling={"type": "yarn", "factor": 4.0}),
        "rotary scaling 'yarn' is not supported",
    ),
    "new rope scaling": (
        lambda f: edit_config(f, rope_parameters={"rope_type": "llama3", "rope_theta": 1e4}),
        "rotary scaling 'llama3' is not supported",
    ),
    "architecture": (
        lambda f: edit_config(f, architectures=["LlamaForCausalLM"], model_type="llama"),
        "architecture 'LlamaForCausalLM' is not supported",
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


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen") / "sound"
    make_qwen(folder)
    return folder


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
    make_qwen(tmp_path / "theirs", vocab_size=200)
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.json has 257 ids, the embedding 200 rows"
    ):
        read_start(tmp_path / "theirs")


def test_another_tokenizer_than_the_checkpoints_is_refused(tmp_path, sound, settings):
    from dlm_edge.train.run import train

    config = settings(init=str(sound), family="tidar", options={}, tokenizer="bpe")
    with pytest.raises(ConfigError, match="--tokenizer is another one than that of --init"):
        train(config, quiet=True)


def test_a_plain_hugging_face_folder_is_no_checkpoint_to_export_and_says_what_to_do(sound):
    with pytest.raises(CheckpointError, match=r"--init .* --max-steps 0 --out FOLDER"):
        read_checkpoint(sound)


def test_a_qwen_model_is_trained_and_resumed_without_its_source(tmp_path, sound, settings):
    from dlm_edge.train.run import train

    folder = tmp_path / "source"
    shutil.copytree(sound, folder)
    changes = {"family": "tidar", "options": {"block_sizes": "4"}, "init": str(folder)}
    own = tmp_path / "tokenizer.json"
    own.write_text(tokenizer_without_mask(), encoding="utf-8")
    config = settings(**changes, tokenizer=str(own), max_steps=2, out=str(tmp_path / "run"))
    train(config, quiet=True)
    shutil.rmtree(folder)
    from dlm_edge.train.config import TrainConfig, load_settings

    kept = load_settings(tmp_path / "run" / "train.json")
    summary = train(TrainConfig(**{**kept, "max_steps": 4}), resume=True, quiet=True)
    assert (summary["steps"], set(summary["held_out"])) == (4, {"ar", "draft 4"})
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "last")
    assert read_checkpoint(tmp_path / "run").config["model"]["rope_theta"] == 50_000.0


def run(*arguments: str):
    return CliRunner().invoke(main, [*arguments])


def test_the_command_converts_without_data_and_says_where(tmp_path, sound):
    given = ["--family", "tidar", "--init", str(sound), "--max-steps", "0"]
    result = run(*given, "--block-size", "4,8", "--out", str(tmp_path / "ours"))
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == f"checkpoint: {tmp_path / 'ours'}"
    assert read_checkpoint(tmp_path / "ours").config["block_sizes"] == [4, 8]
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
    checkpoint = read_checkpoint(tmp_path / "run")
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
    result = run("--family", "tidar", "--max-steps", "0", *words)
    assert result.exit_code in (1, 2)
    # What became of the mask may be said before.
    assert message in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_logits_of_a_model_of_half_a_billion_weights_are_those_of_transformers(tmp_path):
    shape = {
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32_768,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    }
    folder, ids = tmp_path / "theirs", text(48)
    torch.manual_seed(0)
    config = transformers.Qwen2Config(**shape)
    theirs = transformers.Qwen2ForCausalLM(config).eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    theirs.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_without_mask(), encoding="utf-8")
    with torch.no_grad():
        expected = theirs(ids).logits
    del theirs
    convert(str(folder), str(tmp_path / "ours"), "tidar", {}, 64)
    model = ours(tmp_path / "ours")
    for found in (uncached(model, ids), cached(model, ids, [32, 1, 15])):
        found[..., 257], expected[..., 257] = 0.0, 0.0  # the mask's row is a new one
        assert error(found, expected) <= WORST
