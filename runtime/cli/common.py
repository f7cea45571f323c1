"""What every command line shares: one-line errors, exit statuses, `--json`, `-v` and `--debug`.

Use `@click.command(cls=DlmCommand)` with `@common_options`; the command then raises `DlmError`
wherever it likes. Exit statuses: 0 done, 1 failed, 2 usage, 130 interrupted, 141 the reader of our
output went away. A bug keeps its traceback.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TextIO, TypeVar

import click

from ... import __version__
from ..errors import ConfigError, DlmError

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

EXTRA_OF_PACKAGE = {
    "onnxruntime": "cpu",
    "torch": "desktop",
    "onnx": "desktop",
    "onnxscript": "desktop",
    "safetensors": "desktop",
    "lightning": "desktop",
    "lightning_fabric": "desktop",
    "datasets": "desktop",
    "pyarrow": "desktop",
    "tensorboard": "desktop",
    "tqdm": "desktop",
    "gguf": "desktop",
    "onnx_ir": "desktop",
    "peft": "lora",
    "wandb": "wandb",
    "pycuda": "jetson",
    "cuda": "jetson",
    "matplotlib": "report",
    "uvicorn": "serve",
    "prometheus_client": "serve",
    "sacrebleu": "eval",
    "rouge_score": "eval",
    "nltk": "eval",
}
"""The extra of this package that installs a missing third-party package."""

_DEBUG = "dlm_edge.debug"
_SECTIONS = "dlm_edge_sections"
"""Attribute of a parameter: the section that lists it, and those that follow."""
_Function = TypeVar("_Function", bound=Callable[..., Any])
Decorator = Callable[[Any], Any]
"""What `click.option` returns."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a command's help: a title, lines of its own, and the options put into it."""

    title: str
    rows: tuple[tuple[str, str], ...] = ()
    """Printed before the options: a term and its text."""


_COMMON = Section("Output and help")
_NO_SECTION = Section("Options")


class DlmCommand(click.Command):
    """A command whose expected failures are one line on stderr, usage errors included.

    Its help lists options by section (see `grouped`).
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        settings["context_settings"] = {
            "help_option_names": ["-h", "--help"],
            "max_content_width": 100,
            "show_default": True,
            **(settings.get("context_settings") or {}),
        }
        super().__init__(*args, **settings)

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """As click's, in the section of what all commands have."""
        option = super().get_help_option(ctx)
        if option is not None:
            _put(option, (_COMMON,))
        return option

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes one list per section, in the order of declaration."""
        found: dict[Section, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections = getattr(parameter, _SECTIONS, (_NO_SECTION,))
                for section in sections:
                    found.setdefault(section, list(section.rows))
                found[sections[0]].append(record)
        for section, records in found.items():
            with formatter.section(section.title):
                formatter.write_dl(records)

    def get_help_option_names(self, ctx: click.Context) -> list[str]:
        """-h beside --help, in whatever context the command is asked."""
        return ["-h", "--help"]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's, but an option given twice is refused: the last would win in silence."""
        if not ctx.resilient_parsing:
            try:
                _, _, given = self.make_parser(ctx).parse_args(args=list(args))
            except click.NoSuchOption as error:
                text = next((a for a in args if a.startswith("-") and len(a.split()) > 1), None)
                if text is None or not any(isinstance(p, click.Argument) for p in self.params):
                    raise
                raise click.UsageError(
                    f"{text[:30]!r} begins like an option; write -- before a text that begins "
                    "with -, and options before that",
                    ctx,
                ) from error
            for parameter in given:
                if _takes_one(parameter) and given.count(parameter) > 1:
                    raise click.UsageError(
                        f"{'/'.join(parameter.opts)} is given {given.count(parameter)} times; "
                        "give it once",
                        ctx,
                    )
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; turns an expected failure into one line and its exit status."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            close_stdout()
            sys.exit(EXIT_BROKEN_PIPE)
        except (DlmError, ModuleNotFoundError, OSError, MemoryError) as error:
            if _was_interrupted(error):
                raise KeyboardInterrupt from error
            code, message = _explain(error)
            if ctx.meta.get(_DEBUG):
                traceback.print_exception(error)
            if isinstance(error, OSError):
                _give_up_stdout()
        fail(ctx.command_path, message, code)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """As click's, but with one-line usage errors, 130 on Ctrl-C and a quiet broken pipe."""
        # Named after the installed command also under `python -m`.
        prog_name = prog_name or self.name
        # Python has None where the shell closed a stream. As with other tools, output that cannot
        # be written is an error; no input, and messages that nobody reads, are none.
        sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115
        sys.stdout = sys.stdout or _refusing_output()
        sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        run: Callable[..., Any] = super().main
        if not standalone_mode:
            return run(args, prog_name, complete_var, standalone_mode=False, **extra)
        try:
            with _unwound_when_terminated():
                code = run(args, prog_name, complete_var, standalone_mode=False, **extra)
            sys.stdout.flush()
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            sys.exit(EXIT_USAGE)
        except click.UsageError as error:
            fail(prog_name or "", f"{error.format_message().rstrip('.')} (see --help)", EXIT_USAGE)
        except click.ClickException as error:
            fail(prog_name or "", error.format_message(), error.exit_code)
        except click.Abort:
            sys.exit(EXIT_INTERRUPTED)
        except OSError as error:
            # Flushing, or printing the help; what the command itself meets is caught in `invoke`.
            if isinstance(error, BrokenPipeError):
                close_stdout()
                sys.exit(EXIT_BROKEN_PIPE)
            code, message = _explain(error)
            _give_up_stdout()
            fail(prog_name or "", message, code)
        sys.exit(code if isinstance(code, int) else 0)


def _refusing_output() -> TextIO:
    """Gives a stream that takes nothing: writing fails as it does on a closed stdout."""
    return os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")


def _takes_one(parameter: click.Parameter) -> bool:
    """Tells whether a second value would replace the first: no flag, count, list or argument."""
    if not isinstance(parameter, click.Option) or parameter.multiple or parameter.count:
        return False
    return not parameter.is_flag or bool(parameter.secondary_opts)


@contextlib.contextmanager
def _unwound_when_terminated() -> Iterator[None]:
    """Has SIGTERM unwind as Ctrl-C does, so that nothing half done is left behind, then end by it.

    A second one kills at once. A program that has a handler of its own keeps it.
    """
    asked = False

    def unwind(number: int, _frame: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    try:
        own = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if own:
            signal.signal(signal.SIGTERM, unwind)
    except ValueError:  # signals are the main thread's
        own = False
    try:
        yield
    finally:
        if own:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if asked:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            signal.raise_signal(signal.SIGTERM)


def _give_up_stdout() -> None:
    """Forgets what stdout still holds if it cannot be written, so that the exit does not fail."""
    try:
        sys.stdout.flush()
    except OSError:
        close_stdout()


def _was_interrupted(error: BaseException | None) -> bool:
    """Tells whether Ctrl-C is behind an error: an extension module's import makes its own of it."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _explain(error: Exception) -> tuple[int, str]:
    """Returns exit status and message of an expected failure; raises a bug again."""
    match error:
        case DlmError():
            return error.exit_code, str(error)
        case ModuleNotFoundError():
            extra = EXTRA_OF_PACKAGE.get((error.name or "").partition(".")[0])
            if extra is not None:
                return 1, f"{error.name} is not installed; run: pip install 'dlm-edge[{extra}]'"
        case MemoryError():
            return 1, f"too little memory ({error}): close other programs, or take a smaller model"
        case OSError(strerror=str(reason), filename=None):
            return 1, f"cannot write the output: {reason}"
        case OSError(strerror=str(reason)):
            return 1, f"{os.fsdecode(error.filename)}: {reason}"
    raise error


def fail(command: str, message: str, code: int = 1) -> NoReturn:
    """Prints `command: error: message` as one line on stderr and exits with `code`."""
    click.echo(f"{command}: error: {' '.join(message.split())}", err=True)
    sys.exit(code)


def close_stdout() -> None:
    """Points stdout at nothing, so that the flush at exit cannot fail again after a broken pipe."""
    with contextlib.suppress(OSError):  # a stdout without a file descriptor needs no care
        descriptor = sys.stdout.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)


def grouped(
    section: Section, *options: Decorator, then: Sequence[Section] = ()
) -> Callable[[_Function], _Function]:
    """Adds options under a section of the help; the sections of `then` follow it."""

    def add(function: _Function) -> _Function:
        for option in reversed(options):
            function = option(function)
            _put(function.__click_params__[-1], (section, *then))  # pyright: ignore
        return function

    return add


def _put(parameter: click.Parameter, sections: tuple[Section, ...]) -> None:
    setattr(parameter, _SECTIONS, sections)


def _set_debug(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    ctx.meta[_DEBUG] = value


def common_options(function: _Function) -> _Function:
    """Adds `--json` (as_json), `-v` (verbose: int, a count), `--debug` and `--version`."""
    return grouped(
        _COMMON,
        click.option(
            "--json",
            "as_json",
            is_flag=True,
            help="Print one JSON object to stdout instead of text.",
        ),
        click.option(
            "-v",
            "--verbose",
            count=True,
            show_default=False,
            help="Say more on stderr; may be repeated.",
        ),
        click.option(
            "--debug",
            is_flag=True,
            expose_value=False,
            callback=_set_debug,
            help="Print the traceback of an error, too.",
        ),
        click.version_option(__version__, help="Print the version and end."),
    )(function)


PROMPT_FILE = click.option("--prompt-file", metavar="FILE", help="One prompt per line; - is stdin.")
SEED = click.option("--seed", default=0, help="Equal seeds give equal texts.")
EXPECT_SHA256 = click.option("--expect-sha256", metavar="HEX", help="Refuse any other bundle.")
ENGINE = click.option("--engine", default="auto", help="auto, onnxruntime, tensorrt.")
THREADS = click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads.  [default: all cores, 8 at most]"
)


def print_json(value: Mapping[str, Any]) -> None:
    """Prints one JSON object on one line to stdout; NaN and infinity are refused as a bug."""
    click.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))


def refuse_together(given: Mapping[str, bool], *groups: tuple[str, str, str]) -> None:
    """Refuses contradictory options: per group (option, option, why they contradict).

    Args:
        given: per option as the user types it, whether it was given.
        *groups: pairs that exclude each other, each with the reason.

    Raises:
        ConfigError: naming both options and the reason.
    """
    for first, second, reason in groups:
        if given[first] and given[second]:
            raise ConfigError(f"{first} contradicts {second}: {reason}; give only one of them")


def note(command: str, message: str) -> None:
    """Prints a line about the run on stderr, dim on a terminal."""
    sys.stderr.write(styled(f"{command}: {message}\n", sys.stderr, dim=True))
    sys.stderr.flush()


def styled(text: str, out: TextIO, **style: bool) -> str:
    """Returns `text` in a style if `out` is a terminal that wants colour, else as it is."""
    colour = out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return click.style(text, **style) if colour and text else text
