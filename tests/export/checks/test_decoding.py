"""The default temperature is that of texts that do not repeat themselves."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from dlm_edge.export.checks import decoding
from dlm_edge.export.checks.decoding import default_decoding
from dlm_edge.runtime.bundle.bundle import default_bundle_path, open_bundle
from dlm_edge.runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Manifest:
    decoding: dict
    max_position: int = 64


@dataclass(frozen=True)
class Draft:
    manifest: Manifest


REPEATING, VARIED = (5, 6) * 20, tuple(range(40))


@pytest.mark.parametrize(
    ("greedy", "drawn", "chosen"),
    [
        (REPEATING, VARIED, {"rule": "factor", "temperature": 0.8}),
        (REPEATING, REPEATING, {"rule": "factor"}),
        (VARIED, VARIED, {"rule": "factor"}),
        ((), VARIED, {"rule": "factor"}),
    ],
)
def test_drawing_is_the_default_where_it_alone_does_not_repeat(monkeypatch, greedy, drawn, chosen):
    asked = []

    def continue_ids(prompt, *, max_tokens, temperature):
        asked.append((len(prompt), max_tokens))
        text = SimpleNamespace(token_ids=greedy if temperature == 0 else drawn)
        return SimpleNamespace(result=lambda: text)

    pipeline = SimpleNamespace(continue_ids=continue_ids)
    monkeypatch.setattr(decoding, "Pipeline", lambda *_: pipeline)
    engines = SimpleNamespace(close=lambda: None)
    monkeypatch.setattr(decoding, "open_engines", lambda *_: engines)
    monkeypatch.setattr(decoding, "load_model", lambda *_: None)
    said = []
    draft = Draft(manifest=Manifest(decoding={"rule": "factor"}))
    found, figures = default_decoding(draft, None, np.arange(30), said.append)
    assert found.manifest.decoding == chosen
    assert bool(said) == ("temperature" in chosen)
    assert set(figures["repetition"]) == ({"0", "0.8"} if greedy is REPEATING else {"0"})
    assert asked[:3] == [(1, 48), (8, 48), (16, 48)]


def test_a_bundle_is_decoded_as_the_device_does():
    bundle = open_bundle(default_bundle_path())
    tokenizer = Tokenizer.load(bundle.member("tokenizer.json"))
    ids = np.array([bundle.manifest.eos_token_id, *tokenizer.encode("Once upon a time there was")])
    found, figures = default_decoding(bundle, tokenizer, ids, lambda line: None)
    assert 0.0 <= figures["repetition"]["0"] <= 0.2
    assert found is bundle
