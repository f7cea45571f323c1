from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from dlm_edge.runtime.errors import ConfigError, DataError
from dlm_edge.train.data.tokenizer import (
    encode_plain,
    load_tokenizer,
    make_char,
    make_tokenizer,
    special_ids,
    train_bpe,
    vocab_size_of,
)
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

TEXTS = ["a cat sat on a mat", "the cat ran"]


def test_bpe_holds_special_tokens_within_its_size_and_returns_any_text():
    tokenizer = train_bpe(TEXTS, 262)
    assert vocab_size_of(tokenizer) == 262
    assert special_ids(tokenizer) == {"eos_token_id": 0, "mask_token_id": 1}
    text = "Ünïcode 🐈\r\n\ttabs"
    assert tokenizer.decode(encode_plain(tokenizer, [text])[0]) == text


def test_text_that_spells_a_special_token_stays_text():
    tokenizer = train_bpe(TEXTS, 262)
    ids = encode_plain(tokenizer, ["a <|mask|> b"])[0]
    assert not {0, 1} & set(ids)


def test_char_returns_known_text_and_marks_unknown_characters():
    tokenizer = make_char(TEXTS)
    ids = encode_plain(tokenizer, ["the cat\n"])[0]
    assert len(ids) == 8
    assert ids[-1] == tokenizer.token_to_id("<|unknown|>")
    assert tokenizer.decode(ids[:-1]) == "the cat"


def test_a_vocabulary_too_small_for_all_bytes_is_refused():
    with pytest.raises(ConfigError, match="258"):
        train_bpe(TEXTS, 100)


def test_an_existing_tokenizer_gets_the_special_tokens_it_lacks(tmp_path: Path, capsys):
    path = tmp_path / "tokenizer.json"
    Tokenizer(models.WordLevel({"a": 0, "<|endoftext|>": 1}, unk_token="a")).save(str(path))
    tokenizer = load_tokenizer(path)
    assert special_ids(tokenizer) == {"eos_token_id": 1, "mask_token_id": 2}
    assert vocab_size_of(tokenizer) == 3
    assert "<|mask|>" in capsys.readouterr().err


def test_a_file_that_is_no_tokenizer_is_one_clear_line(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"bpe, char or an existing tokenizer\.json"):
        make_tokenizer("wordpiece", 300, TEXTS, tmp_path / "t.json")
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(DataError, match=r"not a tokenizer\.json"):
        load_tokenizer(tmp_path / "x.json")


def test_a_trained_tokenizer_is_kept_and_used_again(tmp_path: Path):
    kept = tmp_path / "t.json"
    first = make_tokenizer("bpe", 262, TEXTS, kept)
    assert make_tokenizer("bpe", 262, [], kept).to_str() == first.to_str()


def test_stored_truncation_padding_and_dropout_do_not_change_the_ids_of_a_text(tmp_path, capsys):
    plain = train_bpe(TEXTS, 262)
    expected = encode_plain(plain, TEXTS)
    plain.enable_truncation(3)
    plain.enable_padding(length=64, pad_id=0, pad_token="<|endoftext|>")
    stored = json.loads(plain.to_str())
    stored["model"]["dropout"] = 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    loaded = load_tokenizer(tmp_path)
    assert all(encode_plain(loaded, TEXTS) == expected for _ in range(5))
    assert "its truncation and padding and dropout" in capsys.readouterr().err


def test_a_mask_that_is_not_marked_as_special_is_marked_and_never_read_out_of_text(
    tmp_path, capsys
):
    tokenizer = train_bpe(TEXTS, 262)
    stored = json.loads(tokenizer.to_str())
    for token in stored["added_tokens"]:
        token["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    loaded = load_tokenizer(tmp_path)
    assert not {0, 1} & set(encode_plain(loaded, ["a <|mask|> b <|endoftext|>"])[0])
    assert loaded.decode([1, 0], skip_special_tokens=True) == ""
    assert "marked as special" in capsys.readouterr().err


def test_a_long_run_without_a_space_is_learned_in_time_linear_in_its_length():
    long = "ab12" * 50_000
    begin = time.perf_counter()
    tokenizer = train_bpe([long, *TEXTS], 300)
    assert time.perf_counter() - begin < 10
    assert tokenizer.decode(encode_plain(tokenizer, [long])[0]) == long


def test_texts_of_ordinary_words_give_the_vocabulary_of_the_plain_trainer():
    texts = [f"word{i} and another word, number {i * 37}" for i in range(300)]
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|mask|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    plain.train_from_iterator(texts, trainer)
    assert train_bpe(texts, 400).get_vocab() == plain.get_vocab()
