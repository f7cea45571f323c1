"""`dlm-run --chat`: reads what is said line by line and writes the answers as they come."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

import click

from ..chat import Chat
from ..errors import ConfigError, DataError
from ..pipeline import Pipeline, TextGeneration
from .common import EXIT_INTERRUPTED, note, print_json, styled
from .load import with_chosen_rule
from .options import RunOptions
from .text import load, record, summary, tolerate_stdout

_NAME = "dlm-run"
NEW = "/new"
"""The line that begins another conversation."""


def chat(options: RunOptions) -> None:
    """Answers every line until the input ends; exits 130 on Ctrl-C while it waits for one.

    On a terminal, Ctrl-C in an answer ends that answer only.
    """
    tolerate_stdout()
    with load(options) as pipeline:
        options = replace(options, settings=with_chosen_rule(_NAME, pipeline, options.settings))
        talk = Chat(pipeline, system=options.system)
        if _on_terminal() and not options.as_json:
            note(_NAME, f"say something; {NEW} starts over, Ctrl-D ends")
        turn = 0
        for line in _lines():
            if line == NEW:
                talk.restart()
                turn = 0
            elif line.strip():
                try:
                    _answer(pipeline, talk, options, line, turn + 1)
                    turn += 1
                except ConfigError as error:
                    # What was said is too long for what is left; the conversation is as before.
                    if not turn or not _on_terminal():
                        raise
                    note(_NAME, f"{error}; say less, or {NEW}")


def _on_terminal() -> bool:
    return sys.stdin.isatty()


def _lines() -> Iterator[str]:
    """Yields what is said, from a terminal with a prompt; DataError for what is no UTF-8."""
    number = 0
    while True:
        if _on_terminal():
            sys.stderr.write(styled("> ", sys.stderr, bold=True))
            sys.stderr.flush()
        number += 1
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise DataError(f"line {number} of the input is not UTF-8; convert it first") from error
        except KeyboardInterrupt:
            sys.exit(EXIT_INTERRUPTED)
        if not line:
            return
        yield line.rstrip("\r\n")


def _answer(pipeline: Pipeline, talk: Chat, options: RunOptions, text: str, turn: int) -> None:
    answer = talk.say(
        text,
        max_tokens=options.max_tokens,
        seed=options.seed,
        stop=options.stop,
        slide=options.slide,
        conditions=options.conditions,
        **options.settings,
    )
    interrupted = False
    try:
        _show(answer, options)
    except KeyboardInterrupt:
        interrupted = True
    result = answer.so_far()
    if options.as_json:
        facts = {"turn": turn, "num_cached": answer.num_cached}
        print_json({**record(result, pipeline, text), **facts})
    else:
        click.echo()
    if result.approximate:
        note(_NAME, "approximate: the text outgrew the largest context and went on in a window")
    if options.verbose:
        again = len(answer.given_ids) - answer.num_cached
        note(_NAME, f"{summary(result)}; {again} of {len(answer.given_ids)} prompt tokens computed")
    if interrupted and not _on_terminal():
        sys.exit(EXIT_INTERRUPTED)


def _show(answer: TextGeneration, options: RunOptions) -> None:
    for span in answer:
        if span.text and not options.as_json:
            sys.stdout.write(span.text)
            sys.stdout.flush()
