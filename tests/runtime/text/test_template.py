import pytest
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.runtime.text.template import gap_lengths, lay_out, parse_template
from hypothesis import given
from hypothesis import strategies as st

EOS, MASK = 1, 0


def encode(text):
    return [ord(c) for c in text]


def decode(ids):
    return "".join(chr(i) for i in ids if i > 1)


def lay(text, lengths):
    return lay_out(
        parse_template(text), lengths, encode, decode, start_ids=(EOS,), mask_token_id=MASK
    )


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a ___ b", ("a ", " b")),
        ("___", ("", "")),
        ("a___b_____c", ("a", "b", "c")),
        ("a __ b ___", ("a __ b ", "")),
        (r"a \___ b ___", ("a ___ b ", "")),
        (r"a \\___ b", ("a \\", " b")),
        (r"a \\\____ b ___ \n", ("a \\____ b ", " \\n")),
    ],
)
def test_gaps_are_runs_of_underscores_unless_escaped(text, pieces):
    assert parse_template(text).pieces == pieces


@pytest.mark.parametrize("text", ["", "no gap", "__", r"\___"])
def test_a_text_without_a_gap_is_refused(text):
    with pytest.raises(ConfigError, match="no gap"):
        parse_template(text)


@given(st.text(alphabet="ab _\\é\n"), st.lists(st.text(alphabet="xy ,."), max_size=9))
def test_fixed_text_is_kept_byte_for_byte_whatever_the_gaps_hold(text, fillings):
    try:
        template = parse_template(text + "___")
    except ConfigError:
        return
    gaps = (fillings + ["x"] * template.num_gaps)[: template.num_gaps]
    rest = template.assemble(gaps)
    for piece, gap in zip(template.pieces, gaps, strict=False):
        if piece.endswith(" "):
            gap = gap.removeprefix(" ")
            piece = piece[: len(piece) - gap.startswith((",", "."))]
        assert rest.startswith(piece + gap)
        rest = rest[len(piece + gap) :]
    assert rest == template.pieces[-1]


def test_the_space_before_a_gap_belongs_to_the_gap():
    template = parse_template("a ___ b")
    assert template.assemble([" x"]) == "a x b"
    assert template.assemble(["x"]) == "a x b"


def test_punctuation_that_begins_a_gap_follows_the_word_before_it():
    template = parse_template("a ___ b")
    assert template.assemble([", x"]) == "a, x b"
    assert template.assemble([" ."]) == "a. b"
    assert parse_template("a  ___").assemble(["!"]) == "a !"


def test_the_canvas_is_the_start_token_then_pieces_and_masks():
    canvas = lay("a ___ b___", (2, 1))
    a, space, b = encode("a b")
    assert canvas.ids == (EOS, a, MASK, MASK, space, b, MASK)
    assert [canvas.ids[gap] for gap in canvas.gaps] == [(MASK, MASK), (MASK,)]


def test_fixed_text_that_the_tokenizer_cannot_give_back_is_refused():
    with pytest.raises(ConfigError, match="cannot be kept byte for byte"):
        lay("a\x01b ___", (1,))


def test_one_gap_length_counts_for_all_gaps_and_a_list_for_each():
    template = parse_template("___ and ___")
    assert gap_lengths(template, [4]) == (4, 4)
    assert gap_lengths(template, [4, 9]) == (4, 9)
    for wrong in ([1, 2, 3], [0], [], [3, -1]):
        with pytest.raises(ConfigError, match="gap tokens"):
            gap_lengths(template, wrong)
