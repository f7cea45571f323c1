"""From Hugging Face's folders to ours and back, held to transformers' own models."""

import json
from pathlib import Path

import pytest
import torch
from dlm_edge.train.checkpoints.checkpoint import load_weights
from dlm_edge.train.checkpoints.convert import convert, open_any
from dlm_edge.train.checkpoints.start import read_framing, read_start
from dlm_edge.train.families import FAMILIES
from dlm_edge.train.nn.block_step import BlockStep
from dlm_edge.train.nn.masks import causal_mask
from public_folders import make_public, tokenizer_without_mask
from safetensors.torch import load_file
from tiny_checkpoint import make_checkpoint
from tokenizers import Tokenizer

transformers = pytest.importorskip("transformers")

WORST = 1e-5
"""Largest error of a logit over the largest logit, in float32."""
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
KINDS = {
    "llama tied": ("llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "llama untied, stretched": (
        "llama",
        {"head_dim": 16, "rope_parameters": {**LLAMA3, "rope_theta": 10_000.0}, "rope_theta": None},
    ),
    "tied": ("qwen2", {"tie_word_embeddings": True}),
    "untied": ("qwen2", {"tie_word_embeddings": False}),
    "wide heads": ("qwen3", {"tie_word_embeddings": True}),
    "one kv head": ("qwen2", {"num_key_value_heads": 1, "rms_norm_eps": 1e-3}),
}


def ours(folder: Path):
    checkpoint = open_any(folder)
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
    theirs = make_public(tmp_path / "theirs", backbone, **changes)
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


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_half_precision_in_several_files_give_the_logits_of_transformers(
    tmp_path, dtype
):
    make_public(tmp_path / "wide", "llama")
    narrow = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "wide", dtype=getattr(torch, dtype)
    )
    narrow.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    (tmp_path / "theirs" / "tokenizer.json").write_text(tokenizer_without_mask(), encoding="utf-8")
    convert(str(tmp_path / "theirs"), str(tmp_path / "ours"), "ar", {}, 32)
    ids = text()
    with torch.no_grad():
        expected = narrow.float()(ids).logits
    found = uncached(ours(tmp_path / "ours"), ids)
    assert error(found[..., :257], expected[..., :257]) <= WORST


ROPES = {
    "new": {"rope_parameters": {"rope_type": "default", "rope_theta": 7e5}},
    "old": {"rope_theta": 7e5},
    "within the scaling": {"rope_scaling": {"type": "default", "rope_theta": 7e5}},
    "stretched, old": {"rope_theta": 7e5, "rope_scaling": LLAMA3},
    "stretched, new": {"rope_parameters": {**LLAMA3, "rope_theta": 7e5}},
}


@pytest.mark.parametrize("form", sorted(ROPES))
def test_the_base_of_rotary_positions_is_read_wherever_config_json_has_it(tmp_path, form):
    """The oldest form has it beside the scaling, others in it."""
    make_public(tmp_path, "llama")
    path = tmp_path / "config.json"
    config = json.loads(path.read_text("utf-8"))
    for key in ("rope_theta", "rope_scaling", "rope_parameters"):
        config.pop(key, None)
    path.write_text(json.dumps({**config, **ROPES[form]}), encoding="utf-8")
    shape = read_start(tmp_path).shape
    assert shape is not None
    assert shape.rope_theta == 7e5
    assert (shape.rope_scaling is not None) == form.startswith("stretched")


def test_tensors_come_back_bit_for_bit_but_for_the_masks_row(tmp_path):
    make_public(tmp_path / "theirs", tie_word_embeddings=False)
    convert(str(tmp_path / "theirs"), str(tmp_path / "ours"), "tidar", {}, 32)
    before = load_file(tmp_path / "theirs" / "model.safetensors")
    after = load_file(tmp_path / "ours" / "model.safetensors")
    assert set(before) == set(after)
    for name, tensor in before.items():
        rows = [row for row in range(len(tensor)) if tensor.shape[0] != 260 or row != 257]
        assert torch.equal(after[name][rows], tensor[rows]), name
        if len(rows) < len(tensor):
            torch.testing.assert_close(after[name][257], tensor[:257].mean(dim=0))


def test_parts_with_an_index_read_as_one_file_does(tmp_path):
    make_public(tmp_path / "parts", shard="40KB")
    make_public(tmp_path / "one")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    parts, one = (read_start(tmp_path / name).checkpoint.weights for name in ("parts", "one"))
    assert set(parts) == set(one)
    assert all(torch.equal(parts[name], one[name]) for name in one)


def test_a_name_of_the_hub_brings_parts_and_companions(tmp_path, monkeypatch):
    import huggingface_hub.constants as hub_constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--qwen"
    folder = repository / "snapshots" / commit
    make_public(folder, shard="40KB")
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ x }}"}')
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    convert("someone/qwen", str(tmp_path / "ours"), "tidar", {}, 32)
    assert "chat_template" in (tmp_path / "ours" / "tokenizer_config.json").read_text("utf-8")
    assert ours(tmp_path / "ours").config.dim == 48


def test_a_mask_is_added_in_a_spare_row_or_a_new_one_and_said(tmp_path, capsys):
    make_public(tmp_path / "spare")
    convert(str(tmp_path / "spare"), str(tmp_path / "first"), "tidar", {}, 32)
    said = capsys.readouterr().err
    assert "added to the tokenizer: <|mask|>" in said
    assert "spare row 257 of 260" in said
    make_public(tmp_path / "full", vocab_size=257)
    convert(str(tmp_path / "full"), str(tmp_path / "second"), "tidar", {}, 32)
    assert "new row 257" in capsys.readouterr().err
    for name, rows in (("first", 260), ("second", 258)):
        checkpoint = open_any(tmp_path / name)
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
    make_public(tmp_path / "theirs", vocab_size=rows, eos_token_id=None)
    (tmp_path / "theirs" / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    convert(str(tmp_path / "theirs"), str(tmp_path / "ours"), "tidar", {}, 32)
    assert "added to the tokenizer: <|endoftext|>, <|mask|>" in capsys.readouterr().err
    checkpoint = open_any(tmp_path / "ours")
    assert [checkpoint.config[f"{name}_token_id"] for name in ("eos", "mask")] == [255, 256]
    for name in ("embed.weight", "head.weight"):
        table = checkpoint.weights[name]
        assert len(table) == max(rows, 257)
        for row in (255, 256):
            torch.testing.assert_close(table[row], table[:255].mean(dim=0))


def test_transformers_reads_the_added_mask_and_what_stood_beside_it(tmp_path):
    """Where tokenizer_config.json lists added tokens, transformers goes by that list."""
    make_public(tmp_path / "theirs")
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


def test_end_tokens_that_are_no_ids_are_none(tmp_path):
    make_public(tmp_path)
    ends = {"eos_token_id": [{}, "a", 0, True, 7, 0, None]}
    (tmp_path / "generation_config.json").write_text(json.dumps(ends), encoding="utf-8")
    framing = read_framing(tmp_path)
    assert (framing["eos_token_id"], framing["end_ids"]) == (0, [7])


@pytest.mark.parametrize("text", ["{", "[1]", '{"added_tokens_decoder": 3}'])
def test_a_tokenizers_settings_that_cannot_be_read_stay_as_they_are(tmp_path, text):
    make_public(tmp_path / "theirs")
    (tmp_path / "theirs" / "tokenizer_config.json").write_text(text, encoding="utf-8")
    convert(str(tmp_path / "theirs"), str(tmp_path / "ours"), "tidar", {}, 32)
    assert (tmp_path / "ours" / "tokenizer_config.json").read_text(encoding="utf-8") == text


def test_positions_that_a_model_knows_stay_and_shape_options_are_its(tmp_path):
    make_public(tmp_path / "theirs")
    convert(str(tmp_path / "theirs"), str(tmp_path / "ours"), "tidar", {"block_sizes": "4"}, 32)
    config = open_any(tmp_path / "ours").config
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
    make_public(tmp_path / "theirs")
    convert(str(tmp_path / "theirs"), str(tmp_path / "ours"), "mdlm", {"block_sizes": "8"}, 32)
    config = json.loads((tmp_path / "ours" / "config.json").read_text("utf-8"))
    assert "architectures" not in config
    assert (config["model"]["causal"], config["model"]["context"]) == (False, 32)
    assert ours(tmp_path / "ours").config.backbone == "qwen2"


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
