"""Prompts are tokenised, and texts end, as a public checkpoint's own files say."""

import json
from pathlib import Path

import pytest
from dlm_edge.runtime.text.framing import Framing
from dlm_edge.train.checkpoints.convert import convert, open_any
from dlm_edge.train.checkpoints.start import read_framing
from dlm_edge.train.config import TrainConfig
from dlm_edge.train.loop.run import train
from dlm_edge.train.pretrained import Pipeline
from gguf_files import random_model, tokenizer_json, write_gguf

transformers = pytest.importorskip("transformers")

# Ids of the three special tokens of every small tokenizer here: Qwen's <|endoftext|>, and
# SmolLM2's; Llama 3 has a start token in their place.
END, BEGIN, STOP = 0, 1, 2
PROMPTS = ("The king's daughter", "She had 1,024 sheep in 2 hours.\n\n", " naïve café", "x")
CONVENTIONS = {
    # No start token although the settings name one, as in Qwen2.5.
    "qwen2": ("qwen2", {"add_bos_token": False, "eos_token": "<|im_end|>"}, STOP, []),
    # Nothing said of a start token, as in SmolLM2.
    "smollm": ("llama", {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}, STOP, []),
    # The tokenizer itself puts one in front, as in Llama 3; several tokens end a text.
    "llama-bpe": ("llama", {"bos_token": "<|endoftext|>"}, [STOP, BEGIN], [END]),
}


def write_public(folder: Path, pre: str):
    """Writes a random model and a tokenizer of one convention; returns transformers' model."""
    kind, settings, ends, _ = CONVENTIONS[pre]
    content = tokenizer_json(pre)
    content["added_tokens"] = [
        {"id": number, "content": token, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for token, number in content["model"]["vocab"].items()
        if number < 3
    ]
    size = max(content["model"]["vocab"].values()) + 1
    model = random_model(kind, vocab_size=size, tie_word_embeddings=False, eos_token_id=ends)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return model


@pytest.mark.parametrize("pre", sorted(CONVENTIONS))
def test_greedy_texts_are_those_of_transformers_generate_token_for_token(tmp_path, pre):
    model = write_public(tmp_path / "theirs", pre)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    convert(str(tmp_path / "theirs"), str(tmp_path / "ours"), "ar", {}, None)
    with Pipeline.from_pretrained(tmp_path / "ours") as pipeline:
        for prompt in PROMPTS:
            given = tokenizer(prompt, return_tensors="pt")
            whole = model.generate(**given, max_new_tokens=24, do_sample=False, pad_token_id=END)[
                0
            ].tolist()
            ids = pipeline.manifest.framing.prompt(pipeline.tokenizer.encode(prompt))
            assert list(ids) == given["input_ids"][0].tolist()
            new = whole[len(ids) :]
            ends = {pipeline.manifest.eos_token_id, *pipeline.manifest.end_ids}
            expected = [token for token in new if token not in ends]
            found = pipeline.generate(prompt, max_tokens=24, temperature=0.0).result().token_ids
            assert list(found) == expected, prompt


@pytest.mark.parametrize("pre", sorted(CONVENTIONS))
def test_the_facts_go_into_the_checkpoint_and_into_what_is_made_of_it(tmp_path, pre):
    write_public(tmp_path / "theirs", pre)
    _, _, ends, start = CONVENTIONS[pre]
    ends = ends if isinstance(ends, list) else [ends]
    convert(str(tmp_path / "theirs"), str(tmp_path / "ours"), "ar", {}, None)
    convert(str(tmp_path / "ours"), str(tmp_path / "drafts"), "tidar", {"block_sizes": "4"}, None)
    for name in ("ours", "drafts"):
        config = open_any(tmp_path / name).config
        assert config["start_ids"] == start
        assert [config["eos_token_id"], *config["end_ids"]] == ends
    # A mask is added where the family needs one, and only there.
    assert open_any(tmp_path / "ours").config["mask_token_id"] is None
    assert open_any(tmp_path / "drafts").config["mask_token_id"] is not None


def test_end_tokens_are_those_of_all_three_files(tmp_path):
    """A text without <|endoftext|> among its ends is not given it as start or end."""
    write_public(tmp_path, "smollm")
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, "eos_token_id": 7}))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [9, 7, 100000]}')
    assert read_framing(tmp_path) == {"start_ids": [], "eos_token_id": 7, "end_ids": [9, STOP]}


def test_a_gguf_file_has_the_facts_of_the_folder_it_was_made_from(tmp_path):
    for pre in CONVENTIONS:
        kind = CONVENTIONS[pre][0]
        write_gguf(tmp_path / f"{pre}.gguf", random_model(kind), kind, pre)
        found = read_framing(tmp_path / f"{pre}.gguf")
        assert found == {"start_ids": CONVENTIONS[pre][3], "eos_token_id": STOP, "end_ids": []}


@pytest.mark.parametrize("pre", sorted(CONVENTIONS))
def test_training_reads_documents_as_the_checkpoint_does(tmp_path, pre, settings):
    write_public(tmp_path / "theirs", pre)
    config = settings(
        family="ar", options={}, init=str(tmp_path / "theirs"),
        tokenizer=str(tmp_path / "theirs"), max_steps=1, out=str(tmp_path / "run"),
    )  # fmt: skip
    assert isinstance(config, TrainConfig)
    train(config, quiet=True)
    found = open_any(tmp_path / "run").config
    assert found["start_ids"] == CONVENTIONS[pre][3]
    framing = Framing.of(found)
    start = CONVENTIONS[pre][3]
    assert framing.document([5, 6]) == [*start, 5, 6, STOP]
    # Resumed from what it wrote, with the same text.
    config = settings(
        family="ar", options={}, init=str(tmp_path / "theirs"),
        tokenizer=str(tmp_path / "theirs"), max_steps=2, out=str(tmp_path / "run"),
    )  # fmt: skip
    assert train(config, resume=True, quiet=True)["steps"] == 2
