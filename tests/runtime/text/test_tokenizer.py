import json

import pytest
from dlm_edge.runtime.errors import BundleError, ConfigError
from dlm_edge.runtime.text.tokenizer import Tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

TEXT = ["once upon a time there was a café, and in it sat a cat", "日本語 😀 and the naïve cat"]


def byte_level() -> str:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|mask|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT, trainer)
    return backend.to_str()


TOKENIZER = Tokenizer(byte_level())


@given(st.text(max_size=30))
def test_text_survives_the_way_through_ids(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert all(0 <= token < TOKENIZER.vocab_size for token in ids)


def test_text_never_becomes_a_special_token():
    mask, end = TOKENIZER.token_id("<|mask|>"), TOKENIZER.token_id("<|endoftext|>")
    text = "a<|mask|>b<|endoftext|>"
    ids = TOKENIZER.encode(text)
    assert not {mask, end} & set(ids)
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.decode([end, *TOKENIZER.encode("cat"), mask]) == "cat"


@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=30), st.data())
def test_streamed_pieces_add_up_to_the_whole_text(ids, data):
    stream = TOKENIZER.stream()
    pieces, at = [], 0
    while at < len(ids):
        step = data.draw(st.integers(1, 5))
        pieces.append(stream.push(ids[at : at + step]))
        at += step
    pieces.append(stream.flush())
    assert "".join(pieces) == TOKENIZER.decode(ids)


def test_special_tokens_before_a_split_character_do_not_break_it():
    stream, split = TOKENIZER.stream(), TOKENIZER.encode("\u0861")
    assert len(split) == 3
    ids = [0, 0, split[0], 0, 0, *split[1:]]
    assert "".join([*(stream.push([token]) for token in ids), stream.flush()]) == "\u0861"


def test_stray_bytes_before_a_split_character_are_printed_without_breaking_it():
    stream, split = TOKENIZER.stream(), TOKENIZER.encode("\u0861")
    stray = split[-1]
    pieces = [stream.push([token]) for token in (*[stray] * 9, *split, stray)]
    assert "".join(pieces[:9]) == "\ufffd" * 8
    assert "".join(pieces) + stream.flush() == "\ufffd" * 9 + "\u0861\ufffd"


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=20))
def test_a_stream_never_prints_half_a_character(text):
    stream = TOKENIZER.stream()
    pieces = [stream.push([token]) for token in TOKENIZER.encode(text)]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) + stream.flush() == text


def test_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(ConfigError, match="vocabulary"):
        TOKENIZER.decode([TOKENIZER.vocab_size])
    with pytest.raises(ConfigError, match="vocabulary"):
        TOKENIZER.decode([-1])


def test_ids_of_no_token_are_named_and_never_decoded():
    size = TOKENIZER.vocab_size
    assert TOKENIZER.missing_ids(size) == ()
    assert TOKENIZER.missing_ids(size + 3) == (size, size + 1, size + 2)
    holed = json.loads(byte_level())
    holed["model"]["vocab"]["cat!"] = size + 1
    tokenizer = Tokenizer(json.dumps(holed))
    assert tokenizer.missing_ids(size + 3) == (size, size + 2)
    assert tokenizer.decode([size + 1]) == "cat!"
    with pytest.raises(ConfigError, match="is not in the vocabulary"):
        tokenizer.decode([size])


def test_a_lone_surrogate_is_one_line_of_config_error():
    with pytest.raises(ConfigError, match="surrogate"):
        TOKENIZER.encode("\ud800")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"model": 1}', "[" * 5000])
def test_what_is_no_tokenizer_is_one_line_of_bundle_error(tmp_path, text):
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(BundleError) as caught:
        Tokenizer.load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_tokenizer_is_a_bundle_error(tmp_path):
    with pytest.raises(BundleError):
        Tokenizer.load(tmp_path / "missing")


def test_padding_and_truncation_of_the_file_are_switched_off():
    backend = Backend.from_str(byte_level())
    backend.enable_padding(length=50)
    backend.enable_truncation(3)
    text = "once upon a time there was a cat"
    tokenizer = Tokenizer(backend.to_str())
    assert tokenizer.decode(tokenizer.encode(text)) == text
