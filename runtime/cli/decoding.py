"""The command-line options of decoding, made from the decoding rules of all families."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import click

from ..decoding import SHARED, DecodingRule, find_rule
from ..errors import ConfigError
from ..families.table import FAMILIES, RULES
from ..options import Option
from .common import Decorator, Section, grouped

_Function = TypeVar("_Function", bound=Callable[..., Any])
_TYPES = {int: "INTEGER", float: "FLOAT"}


class _RuleName(click.Choice[str]):
    """The name of a decoding rule; a usage error names the one that was meant."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Returns the name of a known rule."""
        try:
            return find_rule(value, RULES.values(), of="this version").name
        except ConfigError as error:
            self.fail(str(error), param, ctx)


def decoding_options(
    title: str = "Decoding (what is not given is the bundle's, then the default here)",
    *,
    renamed: Mapping[str, str] | None = None,
) -> Callable[[_Function], _Function]:
    """Adds `--rule` and every option of every rule; none is required.

    Args:
        title: Of the section with `--rule` and the options that most rules take.
        renamed: Flags by setting, where a command uses the usual flag for something else; of
            settings in that section only.
    """
    declared: dict[str, tuple[Section, Decorator]] = {}
    shared = Section(title)
    for name in SHARED:
        takers = [rule for rule in RULES.values() if name in rule.options()]
        item = takers[0].options()[name]
        if renamed and name in renamed:
            item = replace(item, flags=(renamed[name],))
        declared[name] = shared, _click_option(item, takers)
    sections = []
    for title, rules in _alike():
        rows = [(rule.name, _summary(rule)) for rule in rules]
        for name, item in rules[0].own_options().items():
            if name in declared:  # by another family's rules: one flag, shown in both places
                rows.append((f"{item.flags[0]} {_TYPES[item.kind]}", _help(item, rules)))
        sections.append(section := Section(title, tuple(rows)))
        for name, item in rules[0].own_options().items():
            declared.setdefault(name, (section, _click_option(item, rules)))
    rule = click.option(
        "--rule",
        type=_RuleName(tuple(RULES)),
        metavar="RULE",
        help=f"What a step commits: {', '.join(RULES)}.",
    )

    def add(function: _Function) -> _Function:
        for section, made in reversed(declared.values()):
            function = grouped(section, made)(function)
        return grouped(shared, rule, then=sections)(function)

    return add


def decoding_flags() -> dict[str, str]:
    """Gives the flag of every setting, `rule` included, by the setting's name."""
    found = {"rule": "--rule"}
    for rule in RULES.values():
        found |= {name: item.flags[0] for name, item in rule.options().items()}
    return found


def take_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Removes the decoding settings from a command's arguments; gives those that were given."""
    taken = {name: given.pop(name) for name in decoding_flags() if name in given}
    return {name: value for name, value in taken.items() if value is not None}


def _alike() -> Iterator[tuple[str, list[type[DecodingRule]]]]:
    """Yields the rules that have the same options of their own, under a title, by family."""
    plain = [rule for rule in RULES.values() if not rule.own_options()]
    for family, entry in FAMILIES.items():
        together: dict[tuple[str, ...], list[type[DecodingRule]]] = {}
        for rule in entry.rules:
            together.setdefault(tuple(rule.own_options()), []).append(rule)
        together.pop((), None)
        for rules in together.values():
            names = ", ".join(rule.name for rule in rules)
            yield f"Rule{'s' if len(rules) > 1 else ''} {names} ({family})", rules
    for rule in plain:
        families = ", ".join(name for name, entry in FAMILIES.items() if rule in entry.rules)
        yield f"Rule {rule.name} ({families})", [rule]


def _summary(rule: type[DecodingRule]) -> str:
    return (rule.__doc__ or "").partition("\n")[0]


def _click_option(item: Option, rules: Iterable[type[DecodingRule]]) -> Decorator:
    return click.option(*item.flags, item.name, type=item.kind, help=_help(item, rules))


def _help(item: Option, rules: Iterable[type[DecodingRule]]) -> str:
    """Gives an option's help with its range and its default in these rules."""
    defaults: dict[float, list[str]] = {}
    for rule in rules:
        if (default := rule.options()[item.name].default) is not None:
            defaults.setdefault(default, []).append(rule.name)
    notes = [item.range] if item.kind is float else []
    if defaults:
        usual, *others = sorted(defaults, key=lambda value: -len(defaults[value]))
        notes.append(f"default: {usual:g}")
        notes += [f"{value:g} with {', '.join(defaults[value])}" for value in others]
    return f"{item.help}  [{'; '.join(notes)}]" if notes else item.help


def chosen_rule_note(
    settings: Mapping[str, Any], own: DecodingRule, chosen: DecodingRule | type[DecodingRule]
) -> str:
    """Says which rule an option chose in place of its own; empty where none did."""
    if "rule" in settings or chosen.name == own.name:
        return ""
    name = next(name for name in settings if name not in own.options())
    return (
        f"{decoding_flags()[name]} has no effect on rule {own.name}; decoding by {chosen.name}, "
        "which takes it (--rule chooses another)"
    )
