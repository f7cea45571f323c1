import hashlib
import json
import math
import sys
from dataclasses import replace
from unittest.mock import MagicMock

import pytest
from click.testing import CliRunner
from dlm_edge.runtime import text_generation
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

WRITTEN = {
    "judge_perplexity", "judge_bits_per_char", "entropy", "distinct_4", "repetition",
    "longest_repeat", "self_bleu", "known_words",
}  # fmt: skip


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
    model.family.figure = evaluate.LIKELIHOOD
    pieces = documents.by_document(documents.read_pieces(path))
    found = evaluate.evaluate_documents(model, Bytes(), pieces, block_size=None, seed=0)  # type: ignore[arg-type]
    assert found["ids"] == [1, *long.strip().encode(), 0, 1, *b"a cat", 0]
    assert max(map(len, given)) <= 20


LONG = " ".join(["The cat sat on a mat, the café shut and a dog ran home."] * 3)
WRITING = ("--words", 4, "--num-texts", 4, "--max-tokens", 24, "--temperature", 1)


@pytest.fixture
def long_data(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("\n<|endoftext|>\n".join([LONG] * 6), "utf-8")
    return path


@pytest.fixture
def wordy(tiny_bundle, monkeypatch):
    """The tiny model writes letters without a space: its texts are given some."""
    whole = text_generation.TextGeneration.result

    def result(self):
        found = whole(self)
        text = " ".join(found.text[start : start + 2] for start in range(0, len(found.text), 2))
        return replace(found, text=text)

    monkeypatch.setattr(text_generation.TextGeneration, "result", result)
    return tiny_bundle


def test_tasks_give_figures_of_the_models_texts_and_of_peoples(wordy, long_data):
    pytest.importorskip("sacrebleu")
    given = ("--tasks", "generate,continue", "--judge", wordy, "--prompt-words", 2, *WRITING)
    got = measured(wordy, "--data", long_data, "--training-data", long_data, *given)
    assert "perplexity" not in got
    for task in ("generate", "continue"):
        found = got["tasks"][task]
        assert found["figures"].keys() >= WRITTEN | {"tokens_per_s", "nfe", "tokens_per_nfe"}
        assert found["human"].keys() >= WRITTEN
        assert found["human"]["known_words"] == {"value": 1.0, "low": 1.0, "high": 1.0}
        assert all(set(one) == {"value", "low", "high"} for one in found["figures"].values())
    assert got["judge"] == wordy.name


def test_equal_seeds_write_equal_texts(wordy, long_data, tmp_path):
    pytest.importorskip("sacrebleu")
    texts = []
    for name in ("a", "b"):
        out = tmp_path / name
        measured(wordy, "--data", long_data, "--tasks", "generate", "--out", out, *WRITING)
        report = json.loads((out / "report.json").read_text("utf-8"))
        texts.append(report["tasks"]["generate"]["texts"])
        assert "</html>" in (out / "report.html").read_text("utf-8")
    assert texts[0] == texts[1]
    assert len({text["text"] for text in texts[0]}) == 4


def test_gaps_are_filled_and_held_against_what_was_there(tiny_bundle, long_data, tmp_path):
    pytest.importorskip("sacrebleu")
    out = tmp_path / "out"
    given = ("--tasks", "infill", "--num-texts", 3, "--out", out)
    got = measured(tiny_bundle, "--data", long_data, *given)["tasks"]["infill"]
    assert got["figures"].keys() >= {"exact_match", "bleu", "rouge_l", "meteor", "chrf"}
    report = json.loads((out / "report.json").read_text("utf-8"))
    for text in report["tasks"]["infill"]["texts"]:
        assert f"{text['left']} {text['gap']} {text['right']}" in LONG


def test_a_curve_has_the_figures_of_each_number_of_steps(wordy, long_data, tmp_path):
    pytest.importorskip("sacrebleu")
    pytest.importorskip("matplotlib")
    given = ("--tasks", "speed", "--speed-steps", "2,4", "--rule", "low_confidence", *WRITING)
    out = tmp_path / "out"
    got = measured(wordy, "--data", long_data, "--out", out, *given)["tasks"]["speed"]
    assert "<svg" in (out / "report.html").read_text("utf-8")
    assert list(got) == ["2", "4"]
    runs = [one["figures"]["nfe"]["value"] for one in got.values()]
    assert runs[0] < runs[1]


def test_folders_are_compared_in_pairs(wordy, long_data, tmp_path):
    pytest.importorskip("sacrebleu")
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, top_k in zip(folders, (8, 2), strict=True):
        given = ("--tasks", "likelihood,generate", "--max-samples", 4, "--out", folder)
        measured(wordy, "--data", long_data, *given, *WRITING, "--top-k", top_k)
    got = measured("--compare", *folders, "--out", tmp_path / "c")
    rows = {(row["task"], row["figure"]): row for row in got["rows"]}
    same = rows["likelihood", "perplexity"]
    assert same["differences"] == [{"value": 0.0, "low": 0.0, "high": 0.0}]
    assert same["verdicts"] == ["no difference shown"]
    assert ("generate", "entropy") in rows
    assert (tmp_path / "c" / "comparison.html").exists()
    assert run("--compare", *folders).stdout.startswith("0: ")
    other = tmp_path / "other"
    measured(wordy, "--data", long_data, "--seed", 1, "--max-samples", 4, "--out", other)
    assert "other seeds" in refused(2, "--compare", folders[0], other)
    assert "no folder" not in refused(1, "--compare", folders[0], tmp_path / "none")


def test_tasks_that_cannot_be_done_are_refused(tiny_bundle, data, long_data):
    pytest.importorskip("sacrebleu")
    assert "none of likelihood" in refused(2, tiny_bundle, "--data", data, "--tasks", "sing")
    given = ("--data", long_data, "--tasks", "generate", "--temperature", 0)
    assert "one and the same text" in refused(2, tiny_bundle, *given, "--rule", "low_confidence")
    given = ("--data", data, "--tasks", "continue", "--words", 500)
    assert "lower them" in refused(1, tiny_bundle, *given)
    assert "one model at a time" in refused(2, tiny_bundle, tiny_bundle, "--data", data)
    assert "two folders" in refused(2, tiny_bundle, "--compare")
    given = ("--data", data, "--tasks", "speed", "--speed-steps", "0")
    assert "--speed-steps" in refused(2, tiny_bundle, *given)


def test_a_missing_library_is_named_with_its_extra(wordy, long_data, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    given = ("--data", long_data, "--tasks", "generate", *WRITING)
    assert "dlm-edge[eval]" in refused(1, wordy, *given)


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
