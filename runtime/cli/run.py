"""`dlm-run`: generate, infill, stream, or watch it denoise.

Parses, calls `Pipeline`, prints. Everything heavy is imported once the options are known to make
sense, so that `--help` and a mistyped option answer at once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .common import (
    ENGINE,
    EXPECT_SHA256,
    PROMPT_FILE,
    SEED,
    THREADS,
    DlmCommand,
    Section,
    common_options,
    grouped,
)
from .decoding import decoding_options
from .options import read_options


def _options(function: Callable[..., None]) -> Callable[..., None]:
    whole = click.IntRange(min=1)
    parts = [
        grouped(
            Section("Input"),
            click.option("-m", "--model", metavar="MODEL.dlm", help="The bundle."),
            click.option("-p", "--prompt", metavar="TEXT", help="The prompt."),
            PROMPT_FILE,
            click.option(
                "--slide",
                is_flag=True,
                help="Accept prompts beyond the context: only the tail is seen.",
            ),
            click.option(
                "--condition",
                multiple=True,
                metavar="NAME=FILE.npy",
                help="An array that the texts depend on; --info names the bundle's conditions.",
            ),
            click.option("--infill", metavar="TEXT", help="Fill each ___ in TEXT (\\___ is text)."),
            click.option(
                "--gap-tokens",
                metavar="N[,N…]",
                help="Tokens of every gap, or of each.  [default: 12, about nine words]",
            ),
            click.option(
                "--chat",
                is_flag=True,
                help="Answer each line of stdin, in one conversation (/new starts another).",
            ),
            click.option(
                "--system",
                metavar="TEXT",
                help="System message: instructions before the first turn of a chat.",
            ),
            EXPECT_SHA256,
        ),
        grouped(
            Section("Output"),
            click.option(
                "-n",
                "--max-tokens",
                type=whole,
                help="New tokens at most.  [default: 256 or what fits]",
            ),
            click.option("--stop", multiple=True, help="End before this text; may be repeated."),
            click.option("--num-samples", type=whole, default=1, help="Texts per prompt."),
            SEED,
            click.option("--watch", is_flag=True, help="Show the canvas while it denoises."),
            click.option("--watch-delay", type=click.FloatRange(min=0), help="Seconds per step."),
        ),
        decoding_options(),
        grouped(
            Section("Engine"),
            ENGINE,
            THREADS,
            click.option(
                "--build", is_flag=True, help="Build the bundle's TensorRT plans, if none."
            ),
            click.option("--rebuild", is_flag=True, help="Build them again."),
            click.option(
                "--weak-types",
                is_flag=True,
                help="Plans in which TensorRT 10 chooses precisions itself.",
            ),
            click.option("--plans", is_flag=True, help="List the plans in the cache."),
            click.option(
                "--clear-plans",
                is_flag=True,
                help="Remove the plans of MODEL.dlm; without it, all.",
            ),
        ),
        grouped(
            Section("Instead of text"),
            click.option("--info", is_flag=True, help="Say what the bundle holds."),
            click.option("--check", is_flag=True, help="Compare with the bundle's golden vectors."),
            click.option(
                "--board-report",
                type=click.Path(dir_okay=False, path_type=Path),
                metavar="FILE",
                help="Prove this machine: golden vectors, every kernel, tokens/s, versions; JSON.",
            ),
        ),
    ]
    for part in reversed(parts):
        function = part(function)
    return function


@click.command("dlm-run", cls=DlmCommand)
@click.argument("arguments", nargs=-1, metavar="[MODEL.dlm] [PROMPT]")
@_options
@common_options
def main(arguments: tuple[str, ...], **given: Any) -> None:
    """Writes text with a diffusion language model.

    MODEL.dlm is a bundle (an argument that ends in .dlm always is); without one, the small model
    that ships with the package runs. Without PROMPT it is read from stdin if that is a pipe or a
    file, else the model writes what it likes. The text goes to stdout as it is committed, several
    texts with <|endoftext|> between them where stdout is no terminal; with --json each text is one
    JSON object on a line of its own.

    A decoding option without --rule chooses the first rule of the model's family that takes it,
    unless the bundle's own rule does; a line on stderr says so.
    """
    options = read_options(arguments, given)
    if options.task in ("build", "rebuild", "plans", "clear_plans"):
        from . import plans as cli_plans

        cli_plans.run(options)
        return
    from . import text as cli_run

    match options.task:
        case "info":
            cli_run.show_info(options)
        case "check":
            cli_run.check(options)
        case "board_report":
            from . import board as cli_board

            cli_board.report(options)
        case _ if options.chat:
            from . import chat as cli_chat

            cli_chat.chat(options)
        case _:
            cli_run.generate(options)


if __name__ == "__main__":
    main()
