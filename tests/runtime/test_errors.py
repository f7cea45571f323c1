from dlm_edge.runtime.errors import brief


def test_a_foreign_message_becomes_one_line_cut_between_words():
    assert brief("one\n  two", 20) == "one two"
    assert brief("one two three", 11) == "one two..."
    assert len(brief("x" * 50, 20)) == 20
