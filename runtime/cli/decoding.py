"""The command-line options of decoding, made from the decoding rules of all families."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..decoding import SHARED, DecodingRule
from ..families import RULES, RULES_OF_FAMILY, rules_of
from ..options import Option
from .common import Decorator, Section, grouped

if TYPE_CHECKING:
    from ..pipeline import Pipeline

_Function = TypeVar("_Function", bound=Callable[..., Any])
_TYPES = {int: "INTEGER", float: "FLOAT"}


def decoding_options(*, without: Collection[str] = ()) -> Callable[[_Function], _Function]:
    """Adds `--rule` and every option of every rule but those named; none is required."""
    declared: dict[str, tuple[Section, Decorator]] = {}
    shared = Section("Decoding (what is not given is the bundle's, then the default here)")
    for name in SHARED:
        takers = [rule for rule in RULES.values() if name in rule.options()]
        declared[name] = shared, _click_option(takers[0].options()[name], takers)
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
        type=click.Choice(tuple(RULES)),
        metavar="RULE",
        help=f"What a step commits: {', '.join(RULES)}.  [default: the bundle's]",
    )

    def add(function: _Function) -> _Function:
        for name, (section, made) in reversed(declared.items()):
            if name not in without:
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


def with_rule(pipeline: Pipeline, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Gives settings, with the rule that an option belongs to where the user named none.

    An option that the bundle's own rule does not take chooses the first rule of its family that
    does.
    """
    if "rule" in settings:
        return dict(settings)
    own = pipeline.settings().options()
    for name in settings:
        if name not in own:
            for rule in rules_of(pipeline.manifest.family):
                if name in rule.options():
                    return {"rule": rule.name, **settings}
    return dict(settings)


def _alike() -> Iterator[tuple[str, list[type[DecodingRule]]]]:
    """Yields the rules that have the same options of their own, under a title, by family."""
    plain = [rule for rule in RULES.values() if not rule.own_options()]
    for family, own in RULES_OF_FAMILY.items():
        together: dict[tuple[str, ...], list[type[DecodingRule]]] = {}
        for rule in own:
            together.setdefault(tuple(rule.own_options()), []).append(rule)
        together.pop((), None)
        for rules in together.values():
            names = ", ".join(rule.name for rule in rules)
            yield f"Rule{'s' if len(rules) > 1 else ''} {names} ({family})", rules
    for rule in plain:
        families = ", ".join(name for name, rules in RULES_OF_FAMILY.items() if rule in rules)
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
