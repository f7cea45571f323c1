from __future__ import annotations

import json
from pathlib import Path

import pytest
from dlm_edge.runtime.errors import DataError
from dlm_edge.train.data.sources import documents, find_source, fingerprint

TEXTS = ["One day.", "Two days."]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def as_jsonl(path: Path, field: str = "text") -> Path:
    return write(path, "".join(json.dumps({field: text}) + "\n" for text in TEXTS))


def as_parquet(path: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": TEXTS}).to_parquet(str(path))
    return path


def test_text_splits_at_the_separator_and_drops_white_space_and_empty_documents(tmp_path: Path):
    path = write(tmp_path / "a.txt", "\n One day.\n<|endoftext|>\n\n<|endoftext|>Two days.\n")
    assert list(documents(find_source(str(path)))) == TEXTS


def test_jsonl_gives_the_text_field_of_every_line(tmp_path: Path):
    path = as_jsonl(tmp_path / "a.jsonl", "story")
    assert list(documents(find_source(str(path), "story"))) == TEXTS


def test_parquet_gives_its_text_column(tmp_path: Path):
    assert list(documents(find_source(str(as_parquet(tmp_path / "a.parquet"))))) == TEXTS


def test_a_folder_gives_its_files_in_the_order_of_their_names(tmp_path: Path):
    as_jsonl(tmp_path / "b.jsonl")
    write(tmp_path / "a.txt", "First.")
    write(tmp_path / "notes.md", "not read")
    as_parquet(tmp_path / "c.parquet")
    assert list(documents(find_source(str(tmp_path)))) == ["First.", *TEXTS, *TEXTS]


def test_a_data_set_is_loaded_by_name_through_datasets(tmp_path: Path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "tales"
    folder.mkdir()
    as_jsonl(folder / "train.jsonl")
    source = find_source(f"hf:{folder}")
    assert list(documents(source)) == TEXTS
    assert len(fingerprint(source)) == 64


def test_the_fingerprint_follows_content_and_text_field(tmp_path: Path):
    path = write(tmp_path / "a.txt", "One.")
    first = fingerprint(find_source(str(path)))
    assert fingerprint(find_source(str(path))) == first
    assert fingerprint(find_source(str(path), "story")) != first
    write(path, "Two.")
    assert fingerprint(find_source(str(path))) != first


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "empty"),
        ("a.txt", b"caf\xe9 au lait", "not UTF-8"),
        ("a.jsonl", b'{"text": "caf\xe9"}', "not UTF-8"),
        ("a.jsonl", b"{", "a.jsonl:1: not a JSON object"),
        ("a.jsonl", b'{"body": "x"}', "--text-field"),
        ("a.jsonl", b"3", "--text-field"),
        ("a.jsonl", b'{"text": "x"}\n{"text": null}', "a.jsonl:2: .* found null"),
        ("a.jsonl", b'{"text": ["x"]}', "a.jsonl:1: .* found list"),
        ("a.jsonl", b'{"text": "half \\ud83d"}', "a.jsonl:1: .* half a character"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "a.jsonl:1: "),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1: not a JSON object"),
        ("a.parquet", b"no parquet", "not a readable parquet file"),
    ],
)
def test_a_bad_file_is_one_clear_line(
    tmp_path: Path, caplog, name: str, content: bytes, message: str
):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(documents(find_source(str(path))))
    assert not caplog.records  # nor does `datasets` say it in its own way


def parquet_of(path: Path, column) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": column}), str(path))
    return path


def test_a_parquet_shard_without_rows_is_passed_over(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet_of(tmp_path / "a.parquet", pyarrow.array([], pyarrow.string()))
    parquet_of(tmp_path / "b.parquet", TEXTS)
    assert list(documents(find_source(str(tmp_path)))) == TEXTS


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["x"] * 300 + [None], "row 301: .* found null"),
        ([["x"]], "row 1: .* found list"),
        ([b"x"], "row 1: .* found bytes"),
        ([1], "row 1: .* found int"),
    ],
)
def test_a_parquet_row_without_text_is_named(tmp_path: Path, column, message: str):
    with pytest.raises(DataError, match=message):
        list(documents(find_source(str(parquet_of(tmp_path / "a.parquet", column)))))


def test_a_parquet_file_damaged_in_the_middle_is_one_clear_line(tmp_path: Path):
    path = parquet_of(tmp_path / "a.parquet", [f"text {i} {i * 7919 % 1000}" for i in range(5000)])
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 500] = bytes(500)
    data[4:200] = bytes(196)
    path.write_bytes(data)
    with pytest.raises(DataError, match="not a readable parquet file"):
        list(documents(find_source(str(path))))


def test_names_that_begin_with_a_dot_are_skipped_and_counted(tmp_path: Path, capsys):
    write(tmp_path / "a.txt", "One day.")
    write(tmp_path / "README.md", "About.")
    write(tmp_path / "._a.txt", "\0")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    write(tmp_path / ".ipynb_checkpoints" / "a-checkpoint.txt", "An old draft.")
    assert list(documents(find_source(str(tmp_path)))) == ["One day."]
    said = capsys.readouterr().err
    assert "skips 2 with a name or folder that begins with a dot and 1 of other kinds" in said


def test_a_path_that_leads_nowhere_is_no_data_set_name(tmp_path: Path):
    for where in (str(tmp_path / "none"), "stories.txt", "./x"):
        with pytest.raises(DataError, match="no such file"):
            find_source(where)


def test_other_suffixes_and_folders_without_text_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"no \.txt"):
        find_source(str(tmp_path))
    write(tmp_path / "a.csv", "x")
    with pytest.raises(DataError, match="convert"):
        find_source(str(tmp_path / "a.csv"))
