"""`dlm-run` as a process: readers that leave, terminals, full disks."""

import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from child_programs import LOAD

ROOT = Path(__file__).resolve().parents[3]
STORY = "The cat sat, the café shut. "
PROGRAM = f"""{LOAD}
from dlm_edge.runtime.cli.run import main
main()
"""


LINGERING = f"""{LOAD}
import itertools, time
from types import SimpleNamespace
from dlm_edge.runtime.cli import watch
from dlm_edge.runtime.cli.run import main
naps = itertools.count(1)
def nap(seconds):
    time.sleep(seconds)
    while next(naps) > 3:
        time.sleep(0.05)
watch.time = SimpleNamespace(sleep=nap)
main()
"""
"""Does not get beyond its fourth drawing, however late the signal comes."""
LIMIT_S = 600


def command(*arguments, program=PROGRAM):
    return [sys.executable, "-c", program, str(ROOT), *map(str, arguments)]


def read_terminal(leader):
    """What the terminal shows next; nothing once it has no user any more."""
    assert select.select([leader], [], [], LIMIT_S)[0], "nothing was drawn"
    try:
        return os.read(leader, 65536)
    except OSError:  # Linux's way to say so
        return b""


def test_a_reader_that_goes_away_is_no_error(tiny_bundle):
    with subprocess.Popen(
        command(tiny_bundle, "--num-samples", 5000),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.read(1)
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(timeout=LIMIT_S) == 141
    assert errors == b""


@pytest.mark.parametrize("arguments", [("--max-tokens", 4), ("--help",), ("--json", "--info")])
def test_output_that_cannot_be_written_is_an_error(tiny_bundle, arguments):
    words = ["sh", "-c", '"$@" >&-', "sh", *command(tiny_bundle, *arguments)]
    done = subprocess.run(words, stderr=subprocess.PIPE, text=True, timeout=LIMIT_S)
    assert done.returncode == 1
    assert done.stderr == "dlm-run: error: cannot write the output: Bad file descriptor\n"


def test_watching_on_a_terminal_redraws_and_ctrl_c_gives_the_cursor_back(tiny_bundle):
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "PYTHONUTF8": "1"}
    environment.pop("NO_COLOR", None)
    arguments = command(tiny_bundle, "--watch", "--watch-delay", 0.05, program=LINGERING)
    with subprocess.Popen(
        arguments, stdout=follower, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        os.close(follower)
        seen = b""
        while seen.count(b"graph runs") < 3:
            more = read_terminal(leader)
            assert more
            seen += more
        process.send_signal(signal.SIGINT)
        while more := read_terminal(leader):
            seen += more
        assert process.wait(timeout=LIMIT_S) == 130
    os.close(leader)
    text = seen.decode()
    assert "\x1b[?25l" in text
    assert "\x1b[33m" in text
    assert "░" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    final = text[text.rindex("\x1b[?25h") :].removeprefix("\x1b[?25h").strip()
    assert STORY.startswith(final)


def test_a_piped_prompt_is_continued_and_no_other_stdin_is_read(tiny_bundle, tmp_path):
    (tmp_path / "prompt").write_text("The ", "utf-8")

    def said(*arguments, **stdin):
        asked = command(tiny_bundle, *arguments, "--max-tokens", 4)
        done = subprocess.run(asked, capture_output=True, timeout=LIMIT_S, **stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert said(input=b"The \n") == b"The cat \n"
    with open(tmp_path / "prompt", "rb") as file:
        assert said(stdin=file) == b"The cat \n"
    free = said(stdin=subprocess.DEVNULL)
    assert said(input=b"") == free
    assert said("", input=b"The \n") == free


def test_a_piped_prompt_that_is_no_text_is_one_line(tiny_bundle):
    done = subprocess.run(
        command(tiny_bundle), input=b"caf\xe9", capture_output=True, timeout=LIMIT_S
    )
    assert done.returncode == 1
    assert done.stderr == b"dlm-run: error: the prompt on stdin is not UTF-8; convert it first\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_line(tiny_bundle):
    for arguments in ([tiny_bundle], [tiny_bundle, "--json"], ["--help"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                command(*arguments),
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=LIMIT_S,
            )
        assert done.returncode == 1
        assert done.stderr == "dlm-run: error: cannot write the output: No space left on device\n"
