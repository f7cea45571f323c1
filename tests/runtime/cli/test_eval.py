import hashlib
import json
import math
from unittest.mock import MagicMock

import pytest
from click.testing import CliRunner
from dlm_edge.runtime.cli.eval import main
from dlm_edge.runtime.measure import evaluate
from dlm_edge.runtime.text import documents
from dlm_edge.runtime.text.framing import Framing

STORY = "The cat sat, the café shut."
KEYS = {
    "perplexity",
    "perplexity_low",
    "perplexity_high",
    "nats_per_token",
    "bits_per_char",
    "num_tokens",
    "num_samples",
    "engine",
    "precision",
    "block",
    "seed",
    "data_sha256",
}


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("\n<|endoftext|>\n".join([STORY] * 4), "utf-8")
    return path


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def measured(*arguments):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(code, *arguments):
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("dlm-eval: error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_json_holds_the_figures_and_where_they_come_from(tiny_bundle, data):
    got = measured(tiny_bundle, "--data", data, "--seed", 5, "--max-samples", 8)
    assert set(got) >= KEYS
    assert got["perplexity"] == pytest.approx(math.exp(got["nats_per_token"]))
    assert got["perplexity_low"] < got["perplexity"] < got["perplexity_high"]
    num_bytes = len(STORY.encode())
    assert got["num_documents"] == 4
    # 116 tokens: a window of 64, and 53 more of which whole blocks of 8 are kept.
    assert 4 * (num_bytes + 1) == 116
    assert got["num_tokens"] == 63 + 47
    assert got["bits_per_char"] == pytest.approx(
        got["nats_per_token"] / math.log(2) * got["num_tokens"] / got["num_chars"]
    )
    assert (got["engine"], got["block"], got["seed"]) == ("onnxruntime-cpu", 8, 5)
    assert got["data_sha256"] == hashlib.sha256(data.read_bytes()).hexdigest()


def test_equal_seeds_give_equal_figures_and_other_seeds_others(tiny_bundle, data):
    def figure(seed):
        return measured(tiny_bundle, "--data", data, "--seed", seed, "--max-samples", 4)

    assert figure(1)["nats_per_token"] == figure(1)["nats_per_token"]
    assert figure(1)["nats_per_token"] != figure(2)["nats_per_token"]


def test_limit_counts_documents_and_block_chooses_the_graph(tiny_bundle, data):
    got = measured(tiny_bundle, "--data", data, "--limit", 1, "--max-samples", 4)
    assert (got["num_documents"], got["num_tokens"]) == (1, 23)
    got = measured(tiny_bundle, "--data", data, "--limit", 3, "--block", 64, "--max-samples", 4)
    assert (got["block"], got["num_tokens"]) == (64, 63)


def test_a_long_document_is_encoded_in_pieces_and_framed_as_one(tmp_path, monkeypatch):
    given: list[str] = []

    class Bytes:
        def encode(self, text: str) -> list[int]:
            given.append(text)
            return list(text.encode())

    monkeypatch.setattr(documents, "MAX_PIECE", 20)
    monkeypatch.setattr(evaluate, "evaluate_ids", lambda model, ids, **options: ids.tolist())
    monkeypatch.setattr(evaluate, "eval_figures", lambda ids, *args: {"ids": ids})
    path, long = tmp_path / "a.txt", "the dog ran home " * 9
    path.write_text(f"{long}<|endoftext|>a cat", "utf-8")
    model = MagicMock()
    model.manifest.framing = Framing(start_ids=(1,), eos_token_id=0)
    pieces = documents.by_document(documents.read_pieces(path))
    found = evaluate.evaluate_documents(model, Bytes(), pieces, block_size=None, seed=0)  # type: ignore[arg-type]
    assert found["ids"] == [1, *long.strip().encode(), 0, 1, *b"a cat", 0]
    assert max(map(len, given)) <= 20


def test_without_json_the_figures_are_one_line(tiny_bundle, data):
    result = run(tiny_bundle, "--data", data, "--max-samples", 4)
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    assert result.stdout.startswith("perplexity ")


def test_a_data_file_that_cannot_be_used_is_refused(tiny_bundle, tmp_path):
    bad = tmp_path / "bad.txt"
    assert "cannot read" in refused(1, tiny_bundle, "--data", bad)
    bad.write_bytes(b"")
    assert "holds no text" in refused(1, tiny_bundle, "--data", bad)
    bad.write_bytes(b"a\xff")
    assert "not UTF-8 at byte 1" in refused(1, tiny_bundle, "--data", bad)
    bad.write_bytes(b"short")
    assert "fewer than one block" in refused(1, tiny_bundle, "--data", bad)
    assert "plain text" in refused(1, tiny_bundle, "--data", tmp_path / "data.jsonl")


def test_options_out_of_range_end_with_status_2(tiny_bundle, data):
    assert "8, 64" in refused(2, tiny_bundle, "--data", data, "--block", 5)
    assert "context" in refused(2, tiny_bundle, "--data", data, "--context", 999)
    assert "--margin" in refused(2, tiny_bundle, "--data", data, "--margin", 1.5)
    assert "--data" in refused(2, tiny_bundle)
    assert "MODEL.dlm" in refused(2, "--data", data)
    assert "seed" in refused(2, tiny_bundle, "--data", data, "--seed", -1)


def test_a_missing_bundle_is_refused(data):
    assert "missing.dlm" in refused(1, "missing.dlm", "--data", data)
