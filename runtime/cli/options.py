"""The options of `dlm-run`, checked for contradictions. Opens no bundle."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError, DataError
from ..models.shelf import SHELF, named_bundle
from .common import refuse_together
from .decoding import decoding_flags, take_settings

if TYPE_CHECKING:
    import numpy as np

_CONTRADICTIONS = (
    ("--infill", "PROMPT", "a template is its own prompt"),
    ("--infill", "--prompt-file", "a template is its own prompt"),
    ("--infill", "--max-tokens", "--gap-tokens says how long the gaps are"),
    ("--infill", "--stop", "a gap ends where its tokens end"),
    ("--infill", "--slide", "a template must fit the canvas"),
    ("--infill", "--block", "infilling uses the whole canvas"),
    ("--prompt-file", "PROMPT", "both name prompts"),
    ("--chat", "PROMPT", "what is said comes from stdin, line by line"),
    ("--chat", "--prompt-file", "what is said comes from stdin, line by line"),
    ("--chat", "--infill", "one is a conversation, the other a text with gaps"),
    ("--chat", "--watch", "answers are shown as they come"),
    ("--chat", "--num-samples", "a conversation goes one way"),
    ("--watch", "--json", "one is for eyes, the other for programs"),
)
_ONE_TEXT = ("num_samples", 1)
"""An option that is always there, and asks for nothing at this value."""
TASKS = ("check", "info", "board_report", "build", "rebuild", "plans", "clear_plans")
"""Options that ask for something else than text; each is a run of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What the user asked for, checked for contradictions."""

    bundle: Path | None
    """None: the model that ships with the package."""
    prompt: str | None
    """None: from `prompt_file`, else unconditional."""
    prompt_file: str | None
    infill: str | None
    gap_tokens: tuple[int, ...]
    max_tokens: int | None
    seed: int
    num_samples: int
    slide: bool
    stop: tuple[str, ...]
    conditions: Mapping[str, np.ndarray]
    """By name; see `Request.conditions`."""
    settings: dict[str, Any]
    """Overrides of the bundle's decoding settings."""
    engine: str
    threads: int | None
    expect_sha256: str | None
    watch: bool
    watch_delay: float
    as_json: bool
    verbose: int
    weak_types: bool = False
    """Of a plan that is built."""
    report_path: Path | None = None
    """Where the board's report goes."""
    chat: bool = False
    """Whether to hold a conversation over stdin and stdout."""
    system: str | None = None
    """System message of a chat; None: the template's own."""
    task: str = ""
    """One of TASKS; empty: write text."""


_WEIGHTS = (".safetensors", ".gguf", ".onnx", ".bin", ".pt", ".pth")
"""Endings of files that hold weights."""


def split_arguments(arguments: tuple[str, ...]) -> tuple[Path | None, str | None]:
    """Tells bundle and prompt apart: what ends in `.dlm` is always a bundle, never a prompt, and so
    is the name of a model of the shelf.

    Raises:
        ConfigError: more than one of either.
        BundleError: a model of the shelf that was not pulled.
    """
    bundles = [
        argument for argument in arguments if argument.lower().endswith(".dlm") or argument in SHELF
    ]
    prompts = [argument for argument in arguments if argument not in bundles]
    if len(bundles) > 1:
        raise ConfigError(
            f"found {len(bundles)} bundles ({', '.join(bundles)}); name one (an argument that ends "
            "in .dlm is always a bundle; give such a prompt with -p)"
        )
    for prompt in prompts:
        _refuse_path(prompt)
    if len(prompts) > 1:
        raise ConfigError(
            f"found {len(prompts)} prompts ({', '.join(map(repr, prompts))[:60]}); "
            "put the whole prompt in quotes"
        )
    return (named_bundle(bundles[0]) if bundles else None, prompts[0] if prompts else None)


def _refuse_path(prompt: str) -> None:
    path = Path(prompt)
    try:
        there = bool(prompt) and path.exists()
    except (OSError, ValueError):
        return  # too long for a path, or with a null character: a text
    one_word = not any(map(str.isspace, prompt))
    looks = one_word and ("/" in prompt or path.suffix.lower() in _WEIGHTS)
    if not there and not looks:
        return
    found = "is a folder" if path.is_dir() else "is a file" if there else "looks like a path"
    raise ConfigError(
        f"{prompt!r} {found}, not a prompt: dlm-run opens bundles (*.dlm), which dlm-export makes "
        "from a checkpoint; give a text like this one with -p"
    )


def parse_gap_tokens(text: str) -> tuple[int, ...]:
    """Reads `12` or `8,20`; raises ConfigError."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--gap-tokens must be a number, or one for each gap like 8,20; found {text!r}"
        ) from None


def read_conditions(given: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads arrays given as NAME=FILE.npy; raises ConfigError or DataError."""
    import numpy as np

    found: dict[str, np.ndarray] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise ConfigError(f"--condition must be NAME=FILE.npy, found {text!r}")
        if name in found:
            raise ConfigError(f"--condition {name} is given twice; give one array for each name")
        try:
            with open(path, "rb") as file:
                # Not numpy.load, which takes other formats for pickles and says how to load those.
                found[name] = np.lib.format.read_array(file, allow_pickle=False)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise DataError(
                f"cannot read condition {name} from {path}: {reason}; write it with numpy.save"
            ) from error
    return found


def read_prompts(name: str) -> Iterator[str]:
    """Yields the lines of a UTF-8 file, or of stdin for `-`, as they come; an empty one counts.

    Raises:
        DataError: no such file, not UTF-8, or no line.
    """
    number = 0
    try:
        with click.open_file(name, "rb") as file:
            for line in file:
                number += 1
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except OSError as error:
        raise DataError(
            f"cannot read prompt file {name}: {error.strerror}; check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"prompt file {name} is not UTF-8 in line {number}; convert it first"
        ) from error
    if not number:
        raise DataError(f"prompt file {name} holds no line; write one prompt per line")


def read_piped_prompt() -> str:
    """Reads one prompt from stdin if that is a pipe or a file, else gives an empty one.

    Raises:
        DataError: It is not UTF-8.
    """
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):
        return ""  # closed, or no file of the system's
    # A device is a terminal or /dev/null, a socket is held open by what started the program.
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode)):
        return ""
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError("the prompt on stdin is not UTF-8; convert it first") from error


def read_options(arguments: tuple[str, ...], given: dict[str, Any]) -> RunOptions:
    """Refuses contradictions and fills in what was left out."""
    bundle, prompt = split_arguments(arguments)
    model, named = given.pop("model"), given.pop("prompt")
    for flag, value, positional, what in (
        ("-m", model, bundle, "the bundle"),
        ("-p", named, prompt, "the prompt"),
    ):
        if value is not None and positional is not None:
            raise ConfigError(f"{flag} contradicts {str(positional)!r}: both are {what}; give one")
    bundle = bundle if model is None else named_bundle(model)
    prompt = prompt if named is None else named
    settings = take_settings(given)
    present = {"PROMPT": prompt is not None}
    present |= {flag: name in settings for name, flag in decoding_flags().items()}
    for name, value in given.items():
        # By identity: a temperature of 0 is given, too.
        absent = value is None or value is False or value == () or (name, value) == _ONE_TEXT
        present["--" + name.removeprefix("as_").replace("_", "-")] = not absent
    refuse_together(present, *_CONTRADICTIONS)
    task = _task(present)
    report_path = given["board_report"]
    for name in TASKS:
        given.pop(name)
    _refuse_idle(present, given["engine"])
    if "" in given["stop"]:
        raise ConfigError("--stop must not be empty: it would end every text before it begins")
    gap_tokens = given.pop("gap_tokens")
    return RunOptions(
        bundle=bundle,
        prompt=prompt,
        settings=settings,
        gap_tokens=parse_gap_tokens(gap_tokens) if gap_tokens else (),
        conditions=read_conditions(given.pop("condition")),
        watch_delay=given.pop("watch_delay") or 0.0,
        task=task,
        report_path=report_path,
        **given,
    )


def _task(present: dict[str, bool]) -> str:
    options = ["--" + name.replace("_", "-") for name in TASKS]
    pairs = [(a, b) for index, a in enumerate(options) for b in options[index + 1 :]]
    refuse_together(present, *((a, b, "each is a run of its own") for a, b in pairs))
    asked = [name for name, option in zip(TASKS, options, strict=True) if present[option]]
    for name in asked:
        alone = "--" + name.replace("_", "-")
        others = ("--chat", "PROMPT", "--prompt-file", "--infill", "--watch", "--max-tokens")
        others += ("--stop", "--condition", *decoding_flags().values())
        refuse_together(present, *((alone, other, "it generates no text") for other in others))
    return asked[0] if asked else ""


def _refuse_idle(present: dict[str, bool], engine: str) -> None:
    builds = engine == "tensorrt" or present["--build"] or present["--rebuild"]
    if present["--weak-types"] and not builds:
        raise ConfigError(
            "--weak-types has no effect without --build, --rebuild or --engine tensorrt; add one "
            "or leave it out"
        )
    for needed, option in (
        (("--infill",), "--gap-tokens"),
        (("--watch",), "--watch-delay"),
        (("--chat",), "--system"),
    ):
        if present[option] and not any(present[name] for name in needed):
            raise ConfigError(
                f"{option} has no effect without {' or '.join(needed)}; add it or leave both out"
            )
