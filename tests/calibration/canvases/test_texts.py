"""Which text is calibrated on: plain text only, and never the one that is measured on."""

import json

import pytest
from dlm_edge.calibration.canvases.texts import find_text, read_texts
from dlm_edge.runtime.errors import CalibrationError
from dlm_edge.runtime.text.chat_template import ChatTemplate
from dlm_edge.runtime.text.framing import Framing
from dlm_edge.runtime.text.tokenizer import Tokenizer
from toy_bundle import toy_tokenizer


@pytest.mark.parametrize(("name", "taken"), [("valid.txt", True), ("valid.jsonl", False)])
def test_only_plain_text_of_the_training_is_taken(tmp_path, name, taken):
    (tmp_path / name).write_text("abc def")
    config = {"training": {"settings": {"valid": str(tmp_path / name)}}}
    assert (find_text(None, config) is not None) == taken


def test_a_text_is_not_measured_on_what_it_is_calibrated_on(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("abc def<|endoftext|>ghi jkl")
    (tmp_path / "same.txt").symlink_to(path)
    framing = Framing.of({"eos_token_id": 0})
    with pytest.raises(CalibrationError, match=r"same\.txt.*leave --data out"):
        read_texts((path, "one"), tmp_path / "same.txt", Tokenizer(toy_tokenizer()), framing)


def test_every_other_document_is_a_conversation_where_the_model_chats(tmp_path):
    path = tmp_path / "four.txt"
    path.write_text("<|endoftext|>".join(["abc def " * 20] * 4))
    tokenizer, framing = Tokenizer(toy_tokenizer()), Framing.of({"eos_token_id": 0})
    chat = ChatTemplate(
        begin="",
        system=("", ""),
        user=("a ", " b "),
        assistant=("c ", " d "),
        default_system="ef",
        stop=("<|endoftext|>",),
    )
    texts = read_texts((path, "four"), None, tokenizer, framing, chat)
    plain, said = texts.calibration
    assert tokenizer.decode(plain).strip() == ("abc def " * 20).strip()
    assert tokenizer.decode(said).replace(" ", "").startswith("efaabcdef")
    assert [list(item) for item in texts.held_out] == [list(plain)] * 2


def test_records_are_calibrated_on_as_they_are_trained_on(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps({"text": "abc def " * 40}) + "\n" for _ in range(4)))
    framing = Framing.of({"eos_token_id": 0})
    texts = read_texts((path, "lines"), None, Tokenizer(toy_tokenizer()), framing)
    assert (len(texts.calibration), len(texts.held_out)) == (2, 2)
