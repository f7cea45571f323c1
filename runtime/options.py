"""Options: dataclass fields that state their default, range and help in one place.

Reading from flat mappings, range checks, JSON and command lines all follow from the declaration
with `option`. A field whose default is a dataclass with options of its own is a group: its options
count as those of the dataclass that holds it, so that groups are shared by composition.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from math import isfinite
from typing import Any, TypeVar, get_args, get_type_hints

from .errors import ConfigError

_KEY = "option"
_Settings = TypeVar("_Settings")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One setting: what `option` declared, and the name, type and default of its field."""

    name: str = ""
    kind: type = float
    """int or float."""
    default: Any = None
    """None: not set, which is then a value, too."""
    help: str
    """One sentence, for `--help`."""
    above: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    also: tuple[float, ...] = ()
    """Values outside the range that are accepted, too."""
    flags: tuple[str, ...] = ()
    """Names on a command line."""
    sweep: tuple[float, ...] = ()
    """Values that a sweep tries."""

    @property
    def range(self) -> str:
        """The range in words."""
        if self.kind is int:
            if self.at_most is not None:
                return f"a whole number from {self.at_least:g} to {self.at_most:g}"
            return f"a whole number of at least {self.at_least:g}"
        others = "".join(f"{value:g}, or " for value in self.also)
        low = f"above {self.above:g}" if self.above is not None else f"at least {self.at_least:g}"
        high = "finite" if self.at_most is None else f"at most {self.at_most:g}"
        return f"{others}{low} and {high}"

    def check(self, value: Any) -> None:
        """Raises ConfigError for a value of another type or outside the range."""
        if value is None and self.default is None:
            return
        types = int if self.kind is int else (int, float)
        if isinstance(value, types) and not isinstance(value, bool):
            inside = (
                isfinite(value)
                and (self.above is None or value > self.above)
                and (self.at_least is None or value >= self.at_least)
                and (self.at_most is None or value <= self.at_most)
            )
            if inside or value in self.also:
                return
        raise ConfigError(f"{self.name} must be {self.range}, not {value!r}")


def option(
    default: float | None,
    *,
    help: str,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    also: tuple[float, ...] = (),
    flags: tuple[str, ...] = (),
    sweep: tuple[float, ...] = (),
) -> Any:
    """Declares a dataclass field as an option; see `Option` for the parameters."""
    declared = Option(
        help=help, above=above, at_least=at_least, at_most=at_most, also=also, flags=flags,
        sweep=sweep,
    )  # fmt: skip
    return field(default=default, metadata={_KEY: declared})


@cache
def options_of(settings: type) -> Mapping[str, Option]:
    """Gives the options of a dataclass by name: its own first, then those of its groups."""
    own: dict[str, Option] = {}
    grouped: dict[str, Option] = {}
    hints = get_type_hints(settings)
    for item in fields(settings):
        if _KEY in item.metadata:
            kind = int if int in (hints[item.name], *get_args(hints[item.name])) else float
            flags = item.metadata[_KEY].flags or ("--" + item.name.replace("_", "-"),)
            own[item.name] = replace(
                item.metadata[_KEY], name=item.name, kind=kind, default=item.default, flags=flags
            )
        elif dataclasses.is_dataclass(item.default):
            for name, inner in options_of(type(item.default)).items():
                grouped[name] = replace(inner, default=getattr(item.default, name))
    return own | grouped


def values_of(settings: Any) -> dict[str, Any]:
    """Gives the value of every option by name, in the order of `options_of`."""
    found: dict[str, Any] = {}
    for item in fields(settings):
        value = getattr(settings, item.name)
        found |= {item.name: value} if _KEY in item.metadata else values_of(value)
    return {name: found[name] for name in options_of(type(settings))}


def from_values(settings: type[_Settings], values: Mapping[str, Any]) -> _Settings:
    """Makes a dataclass from values of its options by name; all others keep their defaults."""
    arguments: dict[str, Any] = {}
    for item in fields(settings):  # pyright: ignore[reportArgumentType]
        if _KEY in item.metadata:
            if item.name in values:
                arguments[item.name] = values[item.name]
            continue
        group: Any = item.default
        inner = {name: values[name] for name in options_of(type(group)) if name in values}
        arguments[item.name] = replace(group, **inner)
    return settings(**arguments)


def check_options(settings: Any) -> None:
    """Raises ConfigError for an option outside its range; for `__post_init__`."""
    own = options_of(type(settings))
    for item in fields(settings):
        if _KEY in item.metadata:
            own[item.name].check(getattr(settings, item.name))
