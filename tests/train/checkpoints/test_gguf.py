"""GGUF files against the models and tokenizers that they are written from."""

import json
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from dlm_edge.runtime.errors import CheckpointError
from dlm_edge.train.checkpoints.gguf import QUANTISATIONS, read_gguf
from tokenizers import Tokenizer

gguf = pytest.importorskip("gguf")
pytest.importorskip("transformers")

from gguf_files import (  # noqa: E402
    CONTROLS,
    random_model,
    sentencepiece_facts,
    tokenizer_json,
    write_gguf,
)

SCALED = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_a_float_file_gives_back_every_tensor_of_each_architecture(tmp_path):
    for kind, pre, tied in [("llama", "smollm", True), ("qwen2", "qwen2", False)]:
        model = random_model(kind, tie_word_embeddings=tied)
        write_gguf(tmp_path / kind, model, kind, pre)
        found = read_gguf(tmp_path / kind)
        expected = {
            name: tensor
            for name, tensor in model.state_dict().items()
            if not (tied and name == "lm_head.weight")
        }
        assert found.tensors.keys() == expected.keys()
        assert all(torch.equal(found.tensors[name], expected[name]) for name in expected)
        assert found.config["tie_word_embeddings"] == tied


def test_transformers_computes_the_same_logits_from_what_was_read(tmp_path):
    import transformers
    from safetensors.torch import save_file

    for kind, pre in [("llama", "llama-bpe"), ("qwen3", "qwen2")]:
        model = random_model(kind)
        write_gguf(tmp_path / f"{kind}.gguf", model, kind, pre)
        found, folder = read_gguf(tmp_path / f"{kind}.gguf"), tmp_path / kind
        folder.mkdir()
        save_file(found.tensors, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(found.config))
        again = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        ids = torch.arange(3, 43)[None]
        with torch.no_grad():
            assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_blocks_are_read_to_the_precision_of_their_kind(tmp_path, kind):
    model = random_model("llama")
    write_gguf(tmp_path / "m.gguf", model, "llama", "smollm", kind)
    name = "model.layers.1.mlp.up_proj.weight"
    wanted = model.state_dict()[name]
    blocks = wanted.view(-1, 32)
    bits = {"F16": 11, "BF16": 8, "Q8_0": 7, "Q5_0": 4, "Q5_1": 4, "Q4_0": 3, "Q4_1": 3}[kind]
    steps = (blocks.abs().amax(1, keepdim=True) * 2.0**-bits).expand_as(blocks)
    found = read_gguf(tmp_path / "m.gguf").tensors[name]
    assert bool(((found - wanted).abs().view(-1, 32) <= 1.01 * steps).all())
    assert not torch.equal(found, wanted)


def test_k_quants_are_what_their_blocks_spell():
    # 256 weights in 16 groups: one scale of the block, 6 bits of scale and minimum per group.
    rng = np.random.default_rng(3)
    low, high = rng.integers(0, 64, (16,)), rng.integers(0, 16, (256,))
    scales, minima = low[:8], low[8:]
    packed = np.zeros(12, np.uint8)
    packed[:4] = scales[:4] | (scales[4:] >> 4) << 6
    packed[4:8] = minima[:4] | (minima[4:] >> 4) << 6
    packed[8:] = (scales[4:] & 15) | (minima[4:] & 15) << 4
    nibbles = high.reshape(4, 2, 32).astype(np.uint8)
    step, shift = np.float16(0.5), np.float16(0.25)
    block = np.concatenate(
        [
            np.array([step, shift], np.float16).view(np.uint8),
            packed,
            (nibbles[:, 0] | nibbles[:, 1] << 4).ravel(),
        ]
    )
    found = gguf.dequantize(block[None], gguf.GGMLQuantizationType.Q4_K)
    expected = 0.5 * np.repeat(scales, 32) * high - 0.25 * np.repeat(minima, 32)
    assert np.array_equal(found[0], expected.astype(np.float32))
    assert {"Q4_K", "Q6_K"} <= set(QUANTISATIONS)


def test_the_rotary_scaling_of_llama_3_is_recovered_from_its_factors(tmp_path):
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=4, head_dim=16, rope_parameters=SCALED
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** -(torch.arange(0, 16, 2) / 16)
    model = random_model("llama", rope_parameters=SCALED)
    path = tmp_path / "m.gguf"
    write_gguf(path, model, "llama", "llama-bpe", extra={"rope_freqs.weight": plain / scaled})
    found = read_gguf(path).config
    assert found["rope_theta"] == 500000.0
    assert found["rope_scaling"] == {k: v for k, v in SCALED.items() if k != "rope_theta"}


def odd_strings(count: int):
    """Random strings of what tokenizers trip over."""
    rng = random.Random(7)
    pieces = [
        *(
            "'s",
            "'LL",
            "\u2019s",
            "n't",
            " ",
            "  ",
            "\t",
            "\n",
            "\r\n",
            "\u00a0",
            "\u3000",
            "\ufeff",
        ),
        *("1", "12", "1234567", "٣٤", "²", "½", "a", "Z", "the", " The", "ß", "é", "e\u0301"),
        *(
            "Å",
            "ﬁ",
            "İ",
            "東京",
            "ひらがな",
            "한",
            "नमस्ते",
            "👩\u200d👧",
            "🇩🇪",
            "\u202e",
            "\x00",
            "\x7f",
        ),
        *("!", "...", "—", "$", "_", "#", "//", "<|", "|>", "<|im_end|>", "<|endoftext|>", "\\n"),
    ]
    for _ in range(count):
        yield "".join(rng.choice(pieces) for _ in range(rng.randint(0, 14)))


@pytest.mark.parametrize("pre", ["smollm", "llama-bpe", "qwen2"])
def test_a_thousand_odd_strings_encode_and_decode_as_the_published_tokenizer_does(tmp_path, pre):
    kind = "qwen2" if pre == "qwen2" else "llama"
    write_gguf(tmp_path / "m.gguf", random_model(kind), kind, pre)
    found = Tokenizer.from_str(read_gguf(tmp_path / "m.gguf").tokenizer_json)
    published = Tokenizer.from_str(json.dumps(tokenizer_json(pre)))
    for text in odd_strings(1000):
        ids = published.encode(text).ids
        assert found.encode(text).ids == ids, repr(text)
        assert found.decode(ids) == published.decode(ids)


def test_qwens_tokenizer_is_the_one_that_transformers_makes(tmp_path):
    import transformers

    write_gguf(tmp_path / "m.gguf", random_model("qwen2"), "qwen2", "qwen2")
    found = Tokenizer.from_str(read_gguf(tmp_path / "m.gguf").tokenizer_json)
    model = tokenizer_json("qwen2")["model"]
    theirs = transformers.Qwen2Tokenizer(
        vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]]
    )
    theirs.add_special_tokens({"additional_special_tokens": list(CONTROLS)})
    for text in odd_strings(1000):
        assert found.encode(text).ids == theirs(text)["input_ids"], repr(text)


def merged_by_score(text, facts, *, front=True):
    """SentencePiece's own walk: of all neighbours, the pair whose piece has the best score."""
    pieces, scores = facts["tokenizer_ggml_tokens"], facts["tokenizer__ggml__scores"]
    number = {piece: place for place, piece in enumerate(pieces)}
    parts = list(("\u2581" * front + text.replace(" ", "\u2581")) if text else "")
    while True:
        pairs = [
            (-scores[number[one + other]], place)
            for place, (one, other) in enumerate(pairwise(parts))
            if number.get(one + other, 0) >= 259
        ]
        if not pairs:
            break
        place = min(pairs)[1]
        parts[place : place + 2] = ["".join(parts[place : place + 2])]
    ids = []
    for part in parts:
        known = number.get(part, 0) >= 259
        ids += [number[part]] if known else [3 + byte for byte in part.encode()]
    return ids


@pytest.mark.parametrize("front", [True, False])
def test_sentencepieces_vocabulary_merges_by_score_and_falls_back_to_bytes(tmp_path, front):
    facts = sentencepiece_facts()
    extra = {} if front else {"tokenizer__ggml__add_space_prefix": False}
    write_gguf(tmp_path / "m.gguf", random_model("llama"), "llama", "smollm", **facts, **extra)
    read = read_gguf(tmp_path / "m.gguf")
    found = Tokenizer.from_str(read.tokenizer_json)
    assert found.encode("She").ids[0] == 1  # a start token, though nothing says so
    for text in [*odd_strings(1000), "The king's daughter", " two  spaces ", "\n\n", "\u2581"]:
        ids = found.encode(text, add_special_tokens=False).ids
        assert ids == merged_by_score(text, facts, front=front), repr(text)
        assert found.decode(ids) == text.replace("\u2581", " ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer__ggml__scores": [0.0]}, "scores"),
        ({"tokenizer__ggml__scores": None}, "tokenizer.ggml.scores is missing"),
        ({"tokenizer_ggml_token_type": [1] * 3}, "kinds"),
        ({"tokenizer_ggml_model": "t5"}, "tokenizer t5/default is not supported"),
    ],
)
def test_a_damaged_vocabulary_of_sentencepiece_is_one_line(tmp_path, changes, message):
    facts = sentencepiece_facts() | changes
    write_gguf(tmp_path / "m.gguf", random_model("llama"), "llama", "smollm", **facts)
    with pytest.raises(CheckpointError, match=message) as error:
        read_gguf(tmp_path / "m.gguf")
    assert "\n" not in str(error.value)


def test_a_vocabulary_of_sentencepiece_without_bytes_is_refused(tmp_path):
    facts = sentencepiece_facts()
    facts["tokenizer_ggml_token_type"] = [
        1 if k == 6 else k for k in facts["tokenizer_ggml_token_type"]
    ]
    write_gguf(tmp_path / "m.gguf", random_model("llama"), "llama", "smollm", **facts)
    with pytest.raises(CheckpointError, match="0 of 256 bytes"):
        read_gguf(tmp_path / "m.gguf")


def test_special_ids_and_chat_template_stand_beside_the_tokenizer(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, random_model("llama"), "llama", "llama-bpe", tokenizer__ggml__eot_token_id=1)
    companions = read_gguf(path).companions
    settings = json.loads(companions["tokenizer_config.json"])
    assert settings["add_bos_token"] is True  # what llama-bpe means where nothing is said
    assert settings["bos_token"] == "<|endoftext|>"
    assert settings["eos_token"] == "<|im_end|>"
    assert settings["chat_template"].startswith("{% for message")
    assert json.loads(companions["generation_config.json"])["eos_token_id"] == [2, 1]


def test_what_cannot_be_read_is_one_line_that_says_why(tmp_path):
    model, path = random_model("llama"), tmp_path / "m.gguf"
    cases = {
        "architecture 'falcon' is not supported; choose a GGUF file of llama": {
            "general_architecture": "falcon"
        },
        "tokenizer t5/smollm is not supported": {"tokenizer_ggml_model": "t5"},
        "tokenizer gpt2/viking is not supported": {"tokenizer_ggml_pre": "viking"},
        "one of 3 parts; join them first": {"split__count": 3},
        "llama.block_count is missing": {"llama_block_count": None},
        "do not fit its tokens": {"tokenizer_ggml_merges": ["nothing-like this"]},
        "start token 9000 in a vocabulary of [0-9]+": {
            "tokenizer_ggml_bos_token_id": 9000,
            "tokenizer__ggml__add_bos_token": True,
        },
    }
    for message, changes in cases.items():
        write_gguf(path, model, "llama", "smollm", **changes)
        with pytest.raises(CheckpointError, match=message):
            read_gguf(path)
    write_gguf(path, model, "llama", "smollm", "MXFP4")
    with pytest.raises(CheckpointError, match="is quantised as MXFP4, which is not supported"):
        read_gguf(path)


def test_a_truncated_or_foreign_file_is_one_line_that_says_so(tmp_path):
    path = tmp_path / "m.gguf"
    write_gguf(path, random_model("llama"), "llama", "smollm", "Q8_0")
    whole = path.read_bytes()
    for kept in (0, 3, 20, 1000, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:kept])
        with pytest.raises(CheckpointError, match="copy it again"):
            read_gguf(path)
    path.write_bytes(b"PK\x03\x04" + whole[4:])
    with pytest.raises(CheckpointError, match="copy it again"):
        read_gguf(path)
    with pytest.raises(CheckpointError, match="no such file"):
        read_gguf(tmp_path / "absent.gguf")


def test_a_count_beyond_the_files_end_is_refused_at_once(tmp_path):
    write_gguf(tmp_path / "x.gguf", random_model("llama"), "llama", "smollm")
    data = bytearray((tmp_path / "x.gguf").read_bytes())
    # The type and length of the vocabulary's array stand behind its key and the word ARRAY.
    at = data.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens") + 8
    data[at : at + 8] = (1 << 40).to_bytes(8, "little")
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"x\.gguf: not a GGUF file that can be read"):
        read_gguf(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    "changes",
    [{"llama_embedding_length": "wide"}, {"tokenizer_ggml_tokens": 3}, {"split__count": "two"}],
    ids=str,
)
def test_metadata_of_another_type_is_one_line(tmp_path, changes):
    write_gguf(tmp_path / "x.gguf", random_model("llama"), "llama", "smollm", **changes)
    with pytest.raises(CheckpointError, match=r"x\.gguf: .*copy it again"):
        read_gguf(tmp_path / "x.gguf")


def test_a_tensor_without_dimensions_is_one_line(tmp_path):
    extra = {"token_embd.scale": np.float32(1.0)}
    write_gguf(tmp_path / "x.gguf", random_model("llama"), "llama", "smollm", extra=extra)
    with pytest.raises(CheckpointError):
        read_gguf(tmp_path / "x.gguf")


def test_a_big_endian_file_is_refused(tmp_path):
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="big-endian"):
        read_gguf(path)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_a_converted_file_computes_what_transformers_does(tmp_path, kind):
    from dlm_edge.train.checkpoints.checkpoint import load_weights
    from dlm_edge.train.checkpoints.convert import convert, open_any
    from dlm_edge.train.families import FAMILIES
    from dlm_edge.train.nn.masks import causal_mask

    model, path = random_model(kind), tmp_path / "m.gguf"
    write_gguf(path, model, kind, "qwen2")
    convert(str(path), str(tmp_path / "out"), "ar", {}, 32)
    checkpoint = open_any(tmp_path / "out")
    ours = FAMILIES["ar"].make_model(checkpoint.config["model"]).eval()
    load_weights(ours, checkpoint)
    ids = torch.arange(3, 33)[None]
    with torch.no_grad():
        found, expected = ours(ids, torch.arange(30), causal_mask(30, ids.device)), model(ids)
    # The mask's row of the embedding is a spare one, and starts as the mean of the others.
    known = [number for number in range(500) if number != checkpoint.config["mask_token_id"]]
    error = (found[..., known] - expected.logits[..., known]).abs().max()
    assert error <= 1e-5 * expected.logits.abs().max()
    assert "chat_template" in checkpoint.companions["tokenizer_config.json"]


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused(tmp_path):
    from dlm_edge.train.checkpoints.start import read_start

    write_gguf(tmp_path / "m.gguf", random_model("qwen2", vocab_size=300), "qwen2", "qwen2")
    with pytest.raises(CheckpointError, match="the embedding 300 rows"):
        read_start(tmp_path / "m.gguf")
