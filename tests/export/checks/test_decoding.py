"""The default temperature and rule are those of texts that do not repeat themselves."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from dlm_edge.export.checks import decoding
from dlm_edge.export.checks.decoding import default_decoding
from dlm_edge.runtime.bundle.bundle import default_bundle_path, open_bundle
from dlm_edge.runtime.families.table import rules_of
from dlm_edge.runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Manifest:
    decoding: dict
    max_position: int = 64
    family: str = "mdlm"


@dataclass(frozen=True)
class Draft:
    manifest: Manifest


REPEATING, VARIED = (5, 6) * 20, tuple(range(40))
OWN = {"rule": "factor", "factor": 2.0}


@pytest.mark.parametrize(
    ("texts", "chosen"),
    [
        ([REPEATING, VARIED], {"rule": "factor", "factor": 2.0, "temperature": 0.8}),
        ([REPEATING, REPEATING, VARIED], {"rule": "low_confidence", "temperature": 0.8}),
        ([REPEATING] * 3, OWN),
        ([VARIED], OWN),
        ([()], OWN),
    ],
)
def test_the_first_way_whose_texts_do_not_repeat_is_the_default(monkeypatch, texts, chosen):
    asked = []

    def continue_ids(prompt, *, max_tokens, rule, temperature):
        if len(prompt) == 1:
            asked.append((rule, temperature))
        assert max_tokens == 48
        text = SimpleNamespace(token_ids=texts[len(asked) - 1])
        return SimpleNamespace(result=lambda: text)

    pipeline = SimpleNamespace(continue_ids=continue_ids)
    monkeypatch.setattr(decoding, "Pipeline", lambda *_: pipeline)
    engines = SimpleNamespace(close=lambda: None)
    monkeypatch.setattr(decoding, "open_engines", lambda *_: engines)
    monkeypatch.setattr(decoding, "load_model", lambda *_: None)
    said = []
    draft = Draft(manifest=Manifest(decoding=OWN))
    found, figures = default_decoding(draft, None, np.arange(30), said.append)
    assert found.manifest.decoding == chosen
    assert bool(said) == (chosen is not OWN)
    ways = [("factor", 0.0), ("factor", 0.8), ("low_confidence", 0.8)]
    assert asked == ways[: len(texts)]
    assert [*figures["repetition"]] == [f"{rule} at {heat:g}" for rule, heat in asked]


def test_a_bundle_that_names_no_rule_has_its_familys_first():
    assert [way["rule"] for way in decoding._ways("draft_verify", rules_of("tidar"))] == [
        "draft_verify",
        "draft_verify",
        "next_token",
    ]
    draft = Draft(manifest=Manifest(decoding={}, family="tidar"))
    assert decoding.decoding_settings(draft.manifest, None).name == "draft_verify"


def test_a_bundle_is_decoded_as_the_device_does():
    bundle = open_bundle(default_bundle_path())
    tokenizer = Tokenizer.load(bundle.member("tokenizer.json"))
    ids = np.array([bundle.manifest.eos_token_id, *tokenizer.encode("Once upon a time there was")])
    found, figures = default_decoding(bundle, tokenizer, ids, lambda line: None)
    assert 0.0 <= next(iter(figures["repetition"].values())) <= 0.2
    assert found is bundle
