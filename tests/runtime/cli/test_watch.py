import fcntl
import io
import os
import pty
import re
import struct
import termios
from types import SimpleNamespace

import pytest
from dlm_edge.runtime.cli import watch as watch_module
from dlm_edge.runtime.cli.watch import Watch, display_width, wrap
from dlm_edge.runtime.families.base import Span
from dlm_edge.runtime.frames import CanvasView

MASK = 99
WORDS = {1: "Once", 2: " upon", 3: " a", 4: " time", 5: "\n", 6: " \x1b[31mred", 7: "日本"}


def decode(ids):
    return "".join(WORDS[i] for i in ids)


def half_denoised_canvas():
    canvas = CanvasView([1], MASK)
    canvas.apply(Span(position=1, token_ids=(2,), committed=True))
    canvas.apply(
        Span(
            position=2,
            token_ids=(3, MASK, MASK, 4),
            committed=False,
            fixed=(True, False, False, True),
        )
    )
    return canvas


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


class Ascii(io.StringIO):
    encoding = "ascii"


def draw(out, canvas, columns=80, rows=24, **environment):
    size = os.terminal_size((columns, rows))
    with Watch(out, decode, environment=environment, size=lambda: size) as watch:
        watch.show(canvas, "step 1")
        frame = out.getvalue()
    return frame


def test_canvas_knows_given_committed_provisional_and_masked_positions():
    assert half_denoised_canvas().runs() == [
        ("given", [1]),
        ("committed", [2]),
        ("provisional", [3]),
        ("masked", [MASK, MASK]),
        ("provisional", [4]),
    ]


def test_canvas_never_changes_what_was_given_or_committed():
    canvas = CanvasView([1, MASK, 2], MASK)
    canvas.apply(Span(position=0, token_ids=(4, 4, 4), committed=True))
    canvas.apply(Span(position=0, token_ids=(3, 3, 3), committed=False))
    assert canvas.runs() == [("given", [1]), ("committed", [4]), ("given", [2])]


def test_plain_lines_tell_the_states_apart_by_glyph_alone():
    out = io.StringIO()
    draw(out, half_denoised_canvas())
    assert out.getvalue() == "step   1: Once upon« a░░ time»\n"


def test_plain_lines_hold_one_line_per_step_even_with_newlines_in_the_text():
    out = io.StringIO()
    draw(out, CanvasView([1, 5, 2], MASK))
    assert out.getvalue() == "step   1: Once↵ upon\n"


def test_an_ascii_stream_gets_ascii_glyphs():
    out = Ascii()
    draw(out, half_denoised_canvas())
    assert out.getvalue() == "step   1: Once upon< a__ time>\n"


def test_escape_sequences_of_a_model_do_not_reach_the_terminal():
    assert "\x1b[31m" not in draw(Terminal(), CanvasView([1, 6], MASK))


def test_colour_is_used_on_a_terminal_and_not_with_no_color():
    assert "\x1b[33m a\x1b[0m" in draw(Terminal(), half_denoised_canvas())
    assert not re.search(r"\x1b\[\d*m", draw(Terminal(), half_denoised_canvas(), NO_COLOR="1"))


def test_a_dumb_terminal_gets_plain_lines():
    assert "\x1b" not in draw(Terminal(), half_denoised_canvas(), TERM="dumb")


def test_the_cursor_comes_back_after_an_error():
    out = Terminal()
    with pytest.raises(KeyboardInterrupt), Watch(out, decode):
        raise KeyboardInterrupt
    assert out.getvalue().endswith("\x1b[?25h")


def test_a_redraw_climbs_over_as_many_rows_as_the_window_now_breaks_the_lines_into():
    out = Terminal()
    size = [os.terminal_size((41, 24))]
    with Watch(out, decode, environment={}, size=lambda: size[0]) as watch:
        watch.show(CanvasView([1, 2, 3, 4] * 4, MASK))  # 68 columns: two lines of at most 40
        size[0] = os.terminal_size((20, 24))
        out.truncate(0)
        watch.show(CanvasView([1], MASK))
    # Lines of 38 and 30 columns take two rows each in a window of 20.
    assert "\x1b[3A\x1b[J" in out.getvalue()


def test_a_text_longer_than_the_window_shows_its_end():
    frame = draw(Terminal(), CanvasView([1, 5] * 50 + [2], MASK), rows=5)
    assert frame.count("Once") == 2
    assert "upon" in frame


def test_a_terminal_that_tells_no_size_is_taken_for_one_of_80_columns():
    canvas = CanvasView([1, 5] * 50 + [2], MASK)
    assert draw(Terminal(), canvas, columns=0, rows=0) == draw(Terminal(), canvas)


def test_wrapping_counts_wide_characters_and_never_exceeds_the_columns():
    for columns in range(2, 12):
        lines = wrap([("日本 is a-very-long-word", "given"), (" é\u0301", "masked")], columns)
        assert all(sum(display_width(t) for t, _ in line) <= columns for line in lines)
        kept = "".join(text for line in lines for text, _ in line)
        assert kept.replace(" ", "") == "日本isa-very-long-wordé\u0301"


def test_a_real_terminal_is_redrawn_in_place(monkeypatch):
    naps = []
    # Its own clock only: other threads of this process may sleep as well.
    monkeypatch.setattr(watch_module, "time", SimpleNamespace(sleep=naps.append))
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 10, 30, 0, 0))
    with open(follower, "w", encoding="utf-8") as out:
        size = os.get_terminal_size(follower)
        assert size == (30, 10)
        with Watch(out, decode, delay=0.01, environment={}, size=lambda: size) as watch:
            watch.show(CanvasView([1, MASK, MASK], MASK), "step 1")
            watch.show(CanvasView([1, 2, 3], MASK), "step 2")
        assert naps == [0.01, 0.01]
        data = b""
        while not data.endswith(b"\x1b[?25h"):  # one read may return a part
            data += os.read(leader, 65536)
    seen = data.decode()
    os.close(leader)
    assert seen.startswith("\x1b[?25l")
    assert seen.endswith("\x1b[J\x1b[?25h")
    assert "\x1b[1A\x1b[J" in seen
