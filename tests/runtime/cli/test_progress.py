import io
from types import SimpleNamespace

import pytest
from dlm_edge.runtime.cli import progress
from dlm_edge.runtime.cli.progress import ProgressLine


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_a_line_shows_share_and_time_left_and_wipes_itself(clock):
    out = Terminal()
    line = ProgressLine(out)
    line.show(0, 4, "texts")
    clock[0] += 5
    line.show(1, 4, "texts")
    bar = "#" * 8 + " " * 22
    assert out.getvalue().endswith(f"\rtexts [{bar}]  25%, 15 s left \x1b[K")
    line.wipe()
    assert out.getvalue().endswith("\r\x1b[K")
    assert "\n" not in out.getvalue()


def test_the_same_part_is_drawn_ten_times_a_second_at_most_and_another_at_once(clock):
    out = Terminal()
    line = ProgressLine(out)
    line.show(1, 4)
    line.show(2, 4)
    assert " 50%" not in out.getvalue()
    line.show_share(0.75, "Timing tactics")
    assert "Timing tactics [" in out.getvalue()
    assert " 75%" in out.getvalue()


def test_without_a_terminal_there_is_a_line_every_half_minute_and_none_for_short_work(clock):
    out = io.StringIO()
    line = ProgressLine(out)
    for done in range(1, 5):
        line.show(done, 8, "texts")
        clock[0] += 12
    line.wipe()
    assert out.getvalue() == "texts 50%, 36 s left\n"
