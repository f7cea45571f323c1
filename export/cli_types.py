"""Kinds of values that `dlm-export` takes on the command line."""

from __future__ import annotations

import math
from typing import Any

import click


class Sizes(click.ParamType):
    """Positive integers separated by commas, and words that stand for one."""

    name = "sizes"

    def __init__(self, *words: str) -> None:
        """Takes the words that are admitted beside integers."""
        self.words = words

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int | str, ...]:
        """Returns integers and words; a usage error names what is neither."""
        if isinstance(value, tuple):
            return value
        sizes: list[int | str] = []
        for part in map(str.strip, str(value).split(",")):
            if part in self.words:
                sizes.append(part)
                continue
            if not part.isdecimal() or int(part) < 1:
                choice = "".join(f" nor {word!r}" for word in self.words)
                self.fail(f"{part!r} is no positive integer{choice}", param, ctx)
            sizes.append(int(part))
        return tuple(sizes)


class Percent(click.ParamType):
    """A number of per cent, with or without the sign."""

    name = "percent"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Returns the number; a usage error shows what is none."""
        text = str(value).strip().removesuffix("%").strip()
        try:
            number = float(text)
        except ValueError:
            self.fail(f"{value!r} is no number of per cent", param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no number of per cent", param, ctx)
        return number
