import errno
import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from child_programs import LOAD
from click.testing import CliRunner
from dlm_edge.runtime.cli.common import (
    DlmCommand,
    common_options,
    print_json,
    refuse_together,
    styled,
)
from dlm_edge.runtime.errors import BundleError, ConfigError

ROOT = Path(__file__).resolve().parents[3]


def failing_with(error, *arguments):
    @click.command("dlm-toy", cls=DlmCommand)
    @click.option("--number", type=int)
    @common_options
    def main(number, as_json, verbose):
        if error is not None:
            raise error
        print_json({"number": number, "as_json": as_json, "verbose": verbose})

    return CliRunner().invoke(main, arguments)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (BundleError("is\n  bad"), 1, "dlm-toy: error: is bad\n"),
        (ConfigError("is odd"), 2, "dlm-toy: error: is odd\n"),
        (OSError(errno.ENOSPC, "No space left", "out"), 1, "dlm-toy: error: out: No space left\n"),
        (
            OSError(errno.ENOSPC, "No space left"),
            1,
            "dlm-toy: error: cannot write the output: No space left\n",
        ),
        (
            MemoryError("Unable to allocate 1. GiB"),
            1,
            "dlm-toy: error: too little memory (Unable to allocate 1. GiB): close other programs, "
            "or take a smaller model\n",
        ),
        (
            ModuleNotFoundError(name="torch.nn"),
            1,
            "dlm-toy: error: torch.nn is not installed; run: pip install 'dlm-edge[desktop]'\n",
        ),
    ],
)
def test_an_expected_failure_is_one_line_and_its_status(error, code, line):
    result = failing_with(error)
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", line)


@pytest.mark.parametrize(
    "error", [ValueError("bug"), OSError("bug"), ModuleNotFoundError(name="dlm_edge.nothing")]
)
def test_a_bug_keeps_its_traceback(error):
    assert failing_with(error).exception is error


def test_an_interrupt_that_a_backend_took_for_its_own_failure_ends_with_130():
    error = BundleError("backend not loaded")
    error.__cause__ = ImportError("initialization failed")
    error.__cause__.__cause__ = KeyboardInterrupt()
    result = failing_with(error)
    assert (result.exit_code, result.output.strip()) == (130, "")


def test_a_usage_error_is_one_line_and_status_2():
    for arguments in (["--number", "x"], ["--nonsense"], ["extra"]):
        result = failing_with(None, *arguments)
        assert result.exit_code == 2
        assert result.stderr.startswith("dlm-toy: error: ")
        assert result.stderr.endswith("(see --help)\n")
        assert result.stderr.count("\n") == 1


def test_interruption_and_a_vanished_reader_have_statuses_of_their_own():
    assert failing_with(KeyboardInterrupt()).exit_code == 130
    assert failing_with(BrokenPipeError(errno.EPIPE, "Broken pipe")).exit_code == 141


HALF_DONE = f"""{LOAD}
import tempfile, time
import click
from dlm_edge.runtime.cli.common import DlmCommand, common_options

@click.command("dlm-toy", cls=DlmCommand)
@common_options
def main(as_json, verbose):
    with tempfile.TemporaryDirectory() as folder:
        try:
            click.echo(folder)
            time.sleep(600)
        finally:
            print("cleared away", flush=False)

main()
"""


def test_a_command_that_is_terminated_clears_away_what_it_began():
    arguments = [sys.executable, "-c", HALF_DONE, str(ROOT)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        folder = Path(process.stdout.readline().strip())
        assert folder.is_dir()
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
        # As every program that a signal ended: a service manager takes it for a clean end.
        assert process.wait(timeout=600) == -signal.SIGTERM
    assert not folder.exists()
    assert rest == "cleared away\n"


def test_debug_prints_the_traceback_before_the_line():
    result = failing_with(BundleError("is bad"), "--debug")
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith("dlm-toy: error: is bad\n")


def test_common_options_reach_the_command():
    result = failing_with(None, "--json", "-vv", "--number", "3")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"number": 3, "as_json": True, "verbose": 2}


def test_nan_is_never_printed_as_json():
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_json({"value": float("nan")})


def test_options_that_exclude_each_other_are_named_with_the_reason():
    groups = [("--a", "--b", "they differ"), ("--a", "--c", "they clash")]
    refuse_together({"--a": True, "--b": False, "--c": False}, *groups)
    with pytest.raises(ConfigError, match="--a contradicts --c: they clash"):
        refuse_together({"--a": True, "--b": False, "--c": True}, *groups)


def test_styles_are_for_terminals_that_want_colour(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert styled("a", io.StringIO(), bold=True) == "a"
    assert styled("a", Terminal(), bold=True) == "\x1b[1ma\x1b[0m"
    assert styled("", Terminal(), bold=True) == ""
    monkeypatch.setenv("NO_COLOR", "1")
    assert styled("a", Terminal(), bold=True) == "a"


@pytest.mark.parametrize("again", [["--number", "2"], ["--number=1"]])
def test_an_option_given_twice_is_refused(again):
    result = failing_with(None, "--number", "1", *again)
    assert result.exit_code == 2
    assert "--number is given 2 times; give it once" in result.stderr


def test_a_flag_given_twice_is_no_contradiction():
    assert failing_with(None, "--json", "--json", "-v", "-v").exit_code == 0


def test_a_closed_stdin_is_an_empty_one():
    program = f"{LOAD}\nfrom dlm_edge.runtime.cli.run import main; main()"
    command = ["sh", "-c", '"$0" -c "$1" "$2" --prompt-file - <&-', sys.executable, program]
    command.append(str(ROOT))
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.stderr.count("\n") == 1, found.stderr
    assert "dlm-run: error:" in found.stderr


def test_a_prompt_that_begins_like_an_option_is_told_apart():
    command = [sys.executable, "-c", f"{LOAD}\nfrom dlm_edge.runtime.cli.run import main; main()"]
    command.append(str(ROOT))
    found = subprocess.run([*command, "- he said"], capture_output=True, text=True)
    assert found.returncode == 2
    assert "write -- before a text that begins with -" in found.stderr
