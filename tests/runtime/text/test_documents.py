import pytest
from dlm_edge.runtime.errors import DataError
from dlm_edge.runtime.text import documents as text


def test_documents_are_split_at_the_separator_and_stripped(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one \n<|endoftext|>\n\n two<|endoftext|><|endoftext|>three\n", "utf-8")
    assert list(text.read_documents(path)) == ["one", "two", "three"]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_chunk_borders_inside_characters_and_separators_do_not_show(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(text, "_CHUNK", chunk)
    path = tmp_path / "a.txt"
    path.write_text("\ufeffäöü 😀<|endoftext|>日本", "utf-8")
    assert list(text.read_documents(path)) == ["äöü 😀", "日本"]


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_text_that_is_not_utf8_is_refused_naming_the_byte(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(text, "_CHUNK", chunk)
    path = tmp_path / "a.txt"
    path.write_bytes("aé".encode() + b"b\xffc")
    with pytest.raises(DataError, match="not UTF-8 at byte 4"):
        list(text.read_documents(path))


@pytest.mark.parametrize("content", [b"", b" \n", b"<|endoftext|>\n<|endoftext|>"])
def test_a_file_without_a_document_is_refused(tmp_path, content):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match="holds no text"):
        list(text.read_documents(path))


def test_a_missing_file_or_a_folder_is_refused(tmp_path):
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(DataError, match="cannot read data file"):
            list(text.read_documents(path))


def test_a_file_hash_is_that_of_its_bytes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc")
    assert text.file_sha256(path).startswith("ba7816bf")
