"""Greedy continuations are what the causal model would write, cut where they end or repeat."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from click.testing import CliRunner
from dlm_edge.train.continuations import CausalBatch, finished, whole_sentences
from dlm_edge.train.data.sources import documents, find_source
from dlm_edge.train.nn.config import resolve_model
from dlm_edge.train.nn.masks import causal_mask
from dlm_edge.train.nn.transformer import Transformer, make_backbone
from dlm_edge.train.own_text import main
from tiny_checkpoint import make_checkpoint

EOS = 0


def small_model(**options: object) -> Transformer:
    """A random causal model with grouped heads."""
    torch.manual_seed(3)
    config = resolve_model(
        {
            "dim": 32,
            "num_layers": 2,
            "num_heads": 4,
            "num_kv_heads": 2,
            "vocab_size": 29,
            "context": 24,
            "causal": True,
            **options,
        }
    )
    model = make_backbone(config.to_json()).eval()
    assert isinstance(model, Transformer)
    return model


@torch.no_grad()
def greedy(model: Transformer, ids: list[int], length: int, banned: tuple[int, ...]) -> list[int]:
    """Continues one text by a whole forward per token."""
    while len(ids) < length:
        count = len(ids)
        mask = causal_mask(count, torch.device("cpu"))
        logits = model(torch.tensor([ids]), torch.arange(count), mask)[0, -1]
        logits[list(banned)] = -torch.inf
        ids = [*ids, int(logits.argmax())]
        if ids[-1] == EOS:
            break
    return ids


def test_batches_write_what_whole_forwards_write() -> None:
    model = small_model()
    given = torch.randint(1, 29, (5, 7), generator=torch.Generator().manual_seed(1))
    loop = CausalBatch(model, 5)
    for _ in range(2):  # the second time over the first one's cache
        rows = loop.continued(given, (5, 6), (EOS,)).tolist()
        for row, start in zip(rows, given.tolist(), strict=True):
            alone = greedy(model, start, 24, (5, 6))
            assert row[: len(alone)] == alone


def test_a_text_ends_at_its_end_token_before_a_returning_n_gram_or_at_the_context() -> None:
    assert finished([EOS, 1, 2, 3, EOS, 9], 2, (EOS,), 1) == ([1, 2, 3], True)
    gram = [4, 5, 6, 7, 8, 9, 10, 11]
    assert finished([EOS, 1, *gram, 2, *gram, 3], 2, (EOS,), 1) == ([1, *gram, 2], False)
    assert finished([EOS, 1, 2, 3], 2, (EOS,), 1) == ([1, 2, 3], False)


def test_an_unfinished_text_keeps_its_whole_sentences() -> None:
    assert whole_sentences("He ran. She sat") == "He ran."
    assert whole_sentences('"Oh!" said Tom. "No!" he') == '"Oh!" said Tom. "No!"'
    assert whole_sentences("no end") == ""


def test_a_checkpoint_that_is_missing_is_one_line(tmp_path) -> None:
    result = CliRunner().invoke(
        main, [str(tmp_path / "none"), "--data", str(tmp_path), "--out", str(tmp_path / "o.txt")]
    )
    assert result.exit_code == 1
    assert "no checkpoint here" in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_without_torch_it_is_one_line_that_names_the_extra(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    asked = [str(tmp_path), "--data", str(tmp_path), "--out", str(tmp_path / "o.txt")]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 1
    assert result.output.endswith("torch is not installed; run: pip install 'dlm-edge[desktop]'\n")


@pytest.mark.parametrize(
    ("family", "message"),
    [("mdlm", "not a causal model"), ("unheard", "family 'unheard' is unknown")],
)
def test_what_is_no_causal_model_is_one_line(tmp_path, family, message):
    make_checkpoint(tmp_path / "c")
    path = tmp_path / "c" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "family": family}))
    out = tmp_path / "o.txt"
    asked = [str(tmp_path / "c"), "--data", str(tmp_path), "--out", str(out)]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 1
    assert message in result.output
    assert not out.exists()


def test_the_command_writes_documents_that_training_reads(tmp_path):
    make_checkpoint(tmp_path / "c", family="ar")
    real, out = tmp_path / "real.txt", tmp_path / "new" / "own.txt"
    real.write_text("Oh. A boat sails by.\n<|endoftext|>\nHi. You see it too.")
    asked = [str(tmp_path / "c"), "--data", str(real), "--batch", "2", "--out", str(out)]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 0, result.output
    assert "2 texts" in result.output
    found = sorted(documents(find_source(str(out))))
    assert [text[:3] for text in found] == ["Hi.", "Oh."]
