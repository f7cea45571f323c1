import pytest
from dlm_edge.runtime.errors import DataError
from dlm_edge.runtime.text import documents as text


def test_documents_are_split_at_the_separator_and_stripped(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one \n<|endoftext|>\n\n two<|endoftext|><|endoftext|>three\n", "utf-8")
    assert list(text.joined(text.read_pieces(path))) == ["one", "two", "three"]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_chunk_borders_inside_characters_and_separators_do_not_show(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(text, "_CHUNK", chunk)
    path = tmp_path / "a.txt"
    path.write_text("\ufeffäöü 😀<|endoftext|>日本", "utf-8")
    assert list(text.joined(text.read_pieces(path))) == ["äöü 😀", "日本"]


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_text_that_is_not_utf8_is_refused_naming_the_byte(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(text, "_CHUNK", chunk)
    path = tmp_path / "a.txt"
    path.write_bytes("aé".encode() + b"b\xffc")
    with pytest.raises(DataError, match="not UTF-8 at byte 4"):
        list(text.joined(text.read_pieces(path)))


@pytest.mark.parametrize("content", [b"", b" \n", b"<|endoftext|>\n<|endoftext|>"])
def test_a_file_without_a_document_is_refused(tmp_path, content):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match="holds no text"):
        list(text.joined(text.read_pieces(path)))


def test_a_missing_file_or_a_folder_is_refused(tmp_path):
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(DataError, match="cannot read data file"):
            list(text.joined(text.read_pieces(path)))


def test_a_file_hash_is_that_of_its_bytes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc")
    assert text.file_sha256(path).startswith("ba7816bf")


def test_a_long_document_is_read_as_pieces_cut_between_words(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "_CHUNK", 50)
    monkeypatch.setattr(text, "MAX_PIECE", 20)
    long = "The red dog ran home.\n\nIt saw 12 cats, " * 9 + "and slept."
    path = tmp_path / "a.txt"
    path.write_text(f" short \n<|endoftext|>\n {long} \n<|endoftext|> <|endoftext|>end", "utf-8")
    pieces = list(text.read_pieces(path))
    assert list(text.joined(pieces)) == ["short", long, "end"]
    assert [piece.begins for piece in pieces].count(True) == 3
    cut = [piece.text for piece in pieces if not piece.begins]
    assert len(cut) > 10
    assert all(piece[0] == " " and piece[1].isalpha() and len(piece) <= 40 for piece in cut)


def test_a_run_without_a_word_end_is_cut_at_the_limit(monkeypatch):
    pieces = list(text.pieces_of("x" * 45, limit=20))
    assert [(len(piece.text), piece.begins) for piece in pieces] == [
        (20, True),
        (20, False),
        (5, False),
    ]
    assert list(text.pieces_of(" \n")) == []
