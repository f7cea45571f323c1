"""Decoding rules: which positions a step commits, and how tokens are drawn. Knows no rule.

A rule is a dataclass in its family's folder. Its options (see `options`) are declared there and
nowhere else: JSON, a bundle's defaults, command lines and sweeps are derived from the fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar, TypeVar

from .errors import BundleError, ConfigError
from .ops.rows.contract import Sampling
from .ops.unmask.contract import Selection
from .options import Option, check_options, from_values, option, options_of, values_of

_Rule = TypeVar("_Rule", bound="DecodingRule")

GREEDY = Sampling()
EXACT = Sampling(temperature=1.0)
"""Samples the model's own distribution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingRule:
    """How one text is decoded: a rule and the values of its options.

    The first line of a rule's docstring says in `--help` what it does.
    """

    name: ClassVar[str]
    ignores: ClassVar[tuple[str, ...]] = ()
    """Options of `sampling` that have no effect on this rule and are refused."""
    swept: ClassVar[bool] = False
    """Whether a sweep tries the rule at its defaults."""

    sampling: Sampling = GREEDY

    def __post_init__(self) -> None:
        check_options(self)
        values, known = values_of(self.sampling), options_of(Sampling)
        for name in self.ignores:
            if values[name] != known[name].default:
                raise self.refused(name)

    @property
    def selection(self) -> Selection | None:
        """Which masked positions a step commits; None for rules that commit none."""
        return None

    @classmethod
    def options(cls) -> dict[str, Option]:
        """Gives all options that the rule takes, its own first."""
        found = {n: item for n, item in options_of(cls).items() if n not in cls.ignores}
        return {
            n: found[n] for n in (*(n for n in found if n not in SHARED), *SHARED) if n in found
        }

    @classmethod
    def own_options(cls) -> dict[str, Option]:
        """Gives the options that are not among those that most rules take."""
        return {name: item for name, item in cls.options().items() if name not in SHARED}

    @classmethod
    def refused(cls, name: str) -> ConfigError:
        """Gives the error for an option that the rule does not take."""
        known = cls.options()
        near = get_close_matches(name, known, n=1)
        remedy = f"did you mean {near[0]}?" if near and name not in SHARED else "leave it out"
        return ConfigError(
            f"{name} has no effect on rule {cls.name}, which takes {', '.join(known)}; {remedy}"
        )

    @classmethod
    def from_options(cls: type[_Rule], values: Mapping[str, Any]) -> _Rule:
        """Makes the rule from a flat mapping of options; raises ConfigError."""
        for name in values:
            if name not in cls.options():
                raise cls.refused(name)
        return from_values(cls, values)

    def to_json(self) -> dict[str, Any]:
        """Gives the flat mapping that manifests and results hold, without unset options."""
        values = values_of(self)
        set_ = {name: values[name] for name in self.options() if values[name] is not None}
        return {"rule": self.name, **set_}

    def override(self, rule: type[_Rule], overrides: Mapping[str, Any]) -> _Rule:
        """Lays what a user asked for, of the same rule or another, over these values.

        Values that contradict an override yield to it: another rule takes over the shared options
        only, and of these only what has the same default in both rules; temperature 0 drops top-k
        and top-p.
        """
        values, options, before = values_of(self), rule.options(), self.options()
        if rule is not type(self):
            values = {
                name: values[name]
                for name in SHARED
                if name in options and name in before
                if options[name].default == before[name].default
            }
        laid = {**{name: item.default for name, item in options.items()}, **values, **overrides}
        if laid.get("temperature") == 0:
            values = {n: value for n, value in values.items() if n not in ("top_k", "top_p")}
        return rule.from_options({**{n: values[n] for n in values if n in options}, **overrides})


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRule(DecodingRule):
    """A rule that works on a block of positions."""

    block_size: int | None = option(
        None,
        at_least=1,
        flags=("--block", "--block-size"),
        help="Positions denoised, or drafted, together: one of the bundle's sizes (see --info).",
    )


SHARED = (*options_of(Sampling), "block_size", "sub_block", "merge")
"""Options that have one meaning in all rules that take them."""


def find_rule(name: object, rules: Iterable[type[_Rule]], *, of: str) -> type[_Rule]:
    """Gives a rule by name; ConfigError if it is not among `rules`, those of `of`."""
    known = {rule.name: rule for rule in rules}
    if isinstance(name, str) and name in known:
        return known[name]
    near = get_close_matches(str(name), known, n=1)
    remedy = f"did you mean {near[0]}?" if near else "choose one of these, or leave out the rule"
    raise ConfigError(f"{of} has no rule {name!r}, only {', '.join(known)}; {remedy}")


def rule_from(
    values: Mapping[str, Any], rules: Iterable[type[DecodingRule]], *, of: str
) -> DecodingRule:
    """Reads what one of `rules`, those of `of`, gave as JSON; raises ConfigError."""
    known, options = tuple(rules), dict(values)
    name = options.pop("rule", known[0].name)
    return find_rule(name, known, of=of).from_options(options)


def rule_over(
    defaults: Mapping[str, Any],
    asked: DecodingRule | Mapping[str, Any] | None,
    rules: Iterable[type[DecodingRule]],
    *,
    of: str,
) -> DecodingRule:
    """Gives the decoding rule of a request or a command, checked.

    Args:
        defaults: A bundle's, as JSON.
        asked: A rule, taken as it is; or options that override the defaults (None: not given),
            among which `rule` names another rule.
        rules: Those that the model's family has.
        of: What has them, in messages.

    Raises:
        ConfigError: A rule or an option that the family does not have, a value out of range, or
            values that contradict each other.
        BundleError: The defaults have such a fault.
    """
    known = tuple(rules)
    if isinstance(asked, DecodingRule):
        find_rule(asked.name, known, of=of)
        return asked
    try:
        own = rule_from(defaults, known, of=of)
    except ConfigError as error:
        raise BundleError(
            f"the bundle's own decoding settings cannot be used ({error}): export it again, or use "
            "the version of dlm-edge that wrote it"
        ) from error
    overrides = {name: value for name, value in (asked or {}).items() if value is not None}
    rule = find_rule(overrides.pop("rule", own.name), known, of=of)
    return own.override(rule, overrides)


def with_steps(settings: dict[str, Any], num_steps: int | None) -> dict[str, Any]:
    """Gives settings with `num_steps` under its setting's name."""
    if num_steps is None:
        return settings
    if settings.get("steps") is not None:
        raise ConfigError("num_steps and steps are one setting: give one of the two")
    return {**settings, "steps": num_steps}
