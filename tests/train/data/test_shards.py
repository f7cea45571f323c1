from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from dlm_edge.runtime.errors import DataError
from dlm_edge.runtime.text import documents as runtime_documents
from dlm_edge.runtime.text.framing import Framing
from dlm_edge.train.data import encode
from dlm_edge.train.data.encode import is_held_out
from dlm_edge.train.data.shards import Corpus, prepare
from dlm_edge.train.data.sources import documents, find_source
from dlm_edge.train.data.tokenizer import special_ids, train_bpe


def corpus(stories: Path, cache: Path, **changes) -> Corpus:
    source = find_source(str(stories))
    tokenizer = train_bpe(documents(source), 280)
    values = {"context": 16, "valid_percent": 10.0, "num_workers": 1, **changes}
    valid = values.pop("valid", None)
    framing = values.pop("framing", Framing.of(special_ids(tokenizer)))
    return prepare(source, valid, tokenizer, cache, framing, **values)


def test_the_stream_is_eos_and_document_in_turn(stories: Path, tmp_path: Path):
    found = corpus(stories, tmp_path)
    texts = list(documents(find_source(str(stories))))
    tokenizer = train_bpe(texts, 280)
    for stream, held in ((found.train, False), (found.valid, True)):
        wanted = [t for t in texts if is_held_out(t, 10.0) == held]
        assert np.array_equal(np.flatnonzero(stream.tokens == 0), stream.starts)
        ends = [*stream.starts[1:], len(stream.tokens)]
        decoded = [
            tokenizer.decode(stream.tokens[s + 1 : e].tolist())
            for s, e in zip(stream.starts, ends, strict=True)
        ]
        assert decoded == wanted
        assert stream.tokens.dtype == np.uint16


@pytest.mark.parametrize("start_ids", [(), (9,), (9, 8)])
def test_a_document_begins_with_the_start_tokens_of_its_model_behind_the_end_of_the_one_before(
    stories: Path, tmp_path: Path, start_ids
):
    plain = corpus(stories, tmp_path).train
    other = Framing(start_ids=start_ids, eos_token_id=7)
    found = corpus(stories, tmp_path, framing=other).train
    texts = np.split(plain.tokens, plain.starts[1:])
    assert len(texts) > 1
    wanted = [np.array([7, *start_ids, *text[1:]]) for text in texts]
    assert np.array_equal(found.tokens, np.concatenate(wanted))
    ends = np.cumsum([len(text) for text in wanted])
    assert found.starts.tolist() == [1, *(ends[:-1] + 1)]


def test_worker_processes_give_the_same_shard(stories: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(encode, "_CHUNK_CHARACTERS", 500)
    one = corpus(stories, tmp_path / "one")
    two = corpus(stories, tmp_path / "two", num_workers=2)
    assert np.array_equal(one.train.tokens, two.train.tokens)
    assert np.array_equal(one.valid.starts, two.valid.starts)


def test_a_document_that_is_encoded_in_pieces_gives_the_tokens_of_the_whole(
    stories: Path, tmp_path: Path, monkeypatch
):
    one = tmp_path / "one.txt"
    one.write_text(stories.read_text("utf-8").replace("<|endoftext|>", ""), "utf-8")
    whole = corpus(one, tmp_path / "whole", valid_percent=0.0, valid=find_source(str(stories)))
    monkeypatch.setattr(runtime_documents, "MAX_PIECE", 200)
    monkeypatch.setattr(runtime_documents, "_CHUNK", 300)
    monkeypatch.setattr(encode, "_CHUNK_CHARACTERS", 500)
    pieces = corpus(one, tmp_path / "pieces", valid_percent=0.0, valid=find_source(str(stories)))
    assert len(one.read_text("utf-8")) > 2000
    assert list(pieces.train.starts) == [0]
    assert np.array_equal(pieces.train.tokens, whole.train.tokens)


def test_a_shard_is_reused_until_the_source_changes(stories: Path, tmp_path: Path, monkeypatch):
    mine = tmp_path / "mine.txt"
    mine.write_bytes(stories.read_bytes())
    corpus(mine, tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(encode, "_encode_chunk", None)
        corpus(mine, tmp_path / "cache")
    mine.write_text(mine.read_text("utf-8") + " And then?")
    corpus(mine, tmp_path / "cache")
    assert len(list((tmp_path / "cache" / "shards").iterdir())) == 2


def test_an_interruption_leaves_no_shard_behind(stories: Path, tmp_path: Path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(encode, "_encode_chunk", stop)
        with pytest.raises(KeyboardInterrupt):
            corpus(stories, tmp_path)
    assert list((tmp_path / "shards").iterdir()) == []
    corpus(stories, tmp_path)


def test_too_few_documents_to_split_hold_out_the_end_of_the_text(tmp_path: Path):
    path = tmp_path / "one.txt"
    path.write_text("a long single text " * 100)
    found = corpus(path, tmp_path)
    assert len(found.valid.tokens) >= 16
    assert "too few documents" in found.note


def test_text_shorter_than_one_sequence_is_one_clear_line(stories: Path, tmp_path: Path):
    path = tmp_path / "short.txt"
    path.write_text("short")
    with pytest.raises(DataError, match=r"the text has . tokens, shorter than two sequences of 16"):
        corpus(path, tmp_path)
    with pytest.raises(DataError, match=r"held-out text has . tokens, shorter than one sequence"):
        corpus(stories, tmp_path, valid=find_source(str(path)))


def test_a_full_disk_names_the_cache_and_what_chooses_another(
    stories: Path, tmp_path: Path, monkeypatch
):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(encode, "_encode_chunk", full)
    with pytest.raises(DataError, match=rf"{tmp_path}.*--cache-dir or XDG_CACHE_HOME"):
        corpus(stories, tmp_path)


def test_a_damaged_shard_says_which_folder_to_delete(stories: Path, tmp_path: Path):
    corpus(stories, tmp_path)
    (folder,) = (tmp_path / "shards").iterdir()
    (folder / "train.bin").write_bytes(b"12")
    with pytest.raises(DataError, match="delete this folder"):
        corpus(stories, tmp_path)


def test_the_index_names_hashes_types_and_counts(stories: Path, tmp_path: Path):
    found = corpus(stories, tmp_path)
    (folder,) = (tmp_path / "shards").iterdir()
    index = json.loads((folder / "index.json").read_text("utf-8"))
    assert index["dtype"] == "uint16"
    assert index["num_tokens"]["train"] == len(found.train.tokens)
    assert index["num_documents"]["valid"] == len(found.valid.starts)
    assert len(index["source_sha256"]) == len(index["tokenizer_sha256"]) == 64


def test_about_the_asked_share_of_documents_is_held_out():
    held = sum(is_held_out(str(i), 2.0) for i in range(20_000))
    assert 300 < held < 500
