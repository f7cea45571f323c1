"""Servers over bundles whose model writes one story over and over."""

import json

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from served import served

CHAT = {
    "begin": "",
    "system": ["S:", "\n"],
    "user": ["U:", "\n"],
    "assistant": ["A:", "\n"],
    "default_system": None,
    "stop": ["<|endoftext|>"],
}


@pytest.fixture(scope="session")
def chat_bundle(make_bundle):
    return make_bundle(name="talker", more={"chat.json": json.dumps(CHAT).encode()})


@pytest.fixture(scope="session")
def server(tiny_bundle, chat_bundle):
    with served(tiny_bundle, chat_bundle) as found:
        yield found
