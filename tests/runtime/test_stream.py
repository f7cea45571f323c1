from dlm_edge.runtime.stream import TextStream
from hypothesis import given
from hypothesis import strategies as st


def decode_bytes(ids):
    return bytes(ids).decode("utf-8", "replace")


@given(st.text(max_size=200), st.lists(st.integers(1, 5), min_size=1), st.text(max_size=20))
def test_pieces_join_to_the_text_whatever_the_chunks(text, sizes, prompt):
    stream = TextStream(decode_bytes, prompt.encode())
    data, got, at = text.encode(), "", 0
    while at < len(data):
        size = sizes[at % len(sizes)]
        got += stream.push(data[at : at + size])
        at += size
        assert text.startswith(got)
    assert got + stream.flush() == text == stream.text


def test_half_a_character_is_held_back():
    stream = TextStream(decode_bytes)
    first, second = "é".encode()
    assert stream.push([first]) == ""
    assert stream.push([second]) == "é"


def test_bytes_that_never_become_a_character_do_not_hold_up_the_stream():
    stream = TextStream(decode_bytes)
    assert stream.push([0xFF, 0x61]) == "\ufffda"
    assert stream.push([0xC3]) == ""
    assert stream.flush() == "\ufffd"


def test_a_stop_string_ends_the_text_and_never_shows_even_in_part():
    stream = TextStream(decode_bytes, stop=["The end", "###"])
    assert stream.push(b"So. The ") == "So. "
    assert stream.push(b"cat. #") == "The cat. "
    assert stream.push(b"# The end. More") == "## "
    assert stream.stopped
    assert stream.text == "So. The cat. ## "
    assert stream.push(b"even more") == stream.flush() == ""


def test_the_first_of_several_stop_strings_counts():
    stream = TextStream(decode_bytes, stop=["b", "a"])
    assert stream.push(b"xab") == "x"


def test_what_only_began_like_a_stop_string_comes_out_at_the_end():
    stream = TextStream(decode_bytes, stop=["The end"])
    assert stream.push(b"The e") == ""
    assert stream.flush() == "The e"
    assert not stream.stopped


@given(st.text(alphabet="ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4)))
def test_a_stopped_text_is_the_text_up_to_the_first_stop_string(text, stops):
    stream = TextStream(decode_bytes, stop=stops)
    got = "".join(stream.push(c.encode()) for c in text) + stream.flush()
    # Token by token, the stop string that is complete first counts.
    ends = [(text.find(s) + len(s), text.find(s)) for s in stops if s in text]
    if not ends:
        assert got == text
    else:
        first_end = min(ends)[0]
        assert got == text[: min(start for end, start in ends if end == first_end)]
