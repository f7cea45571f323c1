"""The member chat.json is read strictly, and says plainly what is wrong with it."""

import json
from types import SimpleNamespace

import pytest
from dlm_edge.runtime.errors import BundleError
from dlm_edge.runtime.text.chat_template import CHAT_NAME, ChatTemplate, read_chat_template

GOOD = {
    "begin": "<s>",
    "system": ["<sys>", "</sys>"],
    "user": ["U: ", "\n"],
    "assistant": ["A: ", "<end>"],
    "default_system": "Be kind.",
    "stop": ["<end>"],
}


def test_it_survives_json():
    found = ChatTemplate.from_json(json.loads(json.dumps(GOOD)))
    assert found.assistant == ("A: ", "<end>")
    assert ChatTemplate.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("begin", 3, "begin"),
        ("user", ["one"], "user must be two texts"),
        ("assistant", None, "assistant"),
        ("stop", [], "stop"),
        ("stop", ["x", 4], "stop"),
        ("default_system", 1, "default_system"),
        ("system", None, "default_system"),
        ("more", "", "an object with the keys"),
        ("begin", "x" * (1 << 17), "begin"),
    ],
)
def test_what_is_unsound_is_named(key, value, why):
    with pytest.raises(BundleError, match=why):
        ChatTemplate.from_json({**GOOD, key: value})


def bundle(tmp_path, content=None):
    members = {}
    if content is not None:
        (tmp_path / CHAT_NAME).write_text(content)
        members[CHAT_NAME] = object()
    return SimpleNamespace(
        manifest=SimpleNamespace(members=members), member=lambda name: tmp_path / name
    )


def test_a_bundle_without_the_member_has_no_chat(tmp_path):
    assert read_chat_template(bundle(tmp_path)) is None


def test_a_member_is_read_or_refused(tmp_path):
    found = read_chat_template(bundle(tmp_path, json.dumps(GOOD)))
    assert found is not None
    assert found.stop == ("<end>",)
    with pytest.raises(BundleError, match="cannot be read"):
        read_chat_template(bundle(tmp_path, "{"))
