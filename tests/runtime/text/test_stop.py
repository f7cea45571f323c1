from dlm_edge.runtime.text_generation import StopFilter
from hypothesis import given
from hypothesis import strategies as st


def test_a_stop_string_ends_the_text_and_never_shows_even_in_part():
    stop = StopFilter(["The end", "###"])
    assert stop.push("So. The ") == "So. "
    assert stop.push("cat. #") == "The cat. "
    assert stop.push("# The end. More") == "## "
    assert stop.stopped
    assert stop.text == "So. The cat. ## "
    assert stop.push("even more") == stop.flush() == ""


def test_the_first_of_several_stop_strings_counts():
    assert StopFilter(["b", "a"]).push("xab") == "x"


def test_without_stop_strings_everything_passes_at_once():
    stop = StopFilter()
    assert stop.push("abc") == "abc"
    assert stop.flush() == ""


def test_what_only_began_like_a_stop_string_comes_out_at_the_end():
    stop = StopFilter(["The end"])
    assert stop.push("The e") == ""
    assert stop.flush() == "The e"
    assert not stop.stopped


@given(
    st.lists(st.text(alphabet="ab", max_size=3), max_size=20),
    st.lists(st.text("ab", min_size=1, max_size=4)),
)
def test_what_was_sent_is_always_the_text_so_far(pieces, stops):
    stop, sent = StopFilter(stops), ""
    for piece in pieces:
        sent += stop.push(piece)
        assert stop.text.startswith(sent)
        assert not any(s in sent for s in stops)
    sent += stop.flush()
    text = "".join(pieces)
    assert sent == stop.text == text[: len(sent)]
    assert stop.stopped == any(s in text for s in stops)
