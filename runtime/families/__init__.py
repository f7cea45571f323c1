"""The families of the device side: their decoding rules here, the families in `table.py`.

This page imports neither NumPy nor an engine, so that a command line can list the rules at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..decoding import DecodingRule, find_rule
from ..errors import BundleError, ConfigError
from .mdlm import rules as mdlm
from .next_token import NextToken
from .sedd.rules import Euler, Tweedie
from .tidar.rules import DraftVerify

if TYPE_CHECKING:
    from ..bundle.manifest import Manifest

RULES_OF_FAMILY: Mapping[str, tuple[type[DecodingRule], ...]] = {
    "mdlm": mdlm.RULES,
    "ar": (NextToken,),
    "sedd": (Tweedie, Euler),
    "tidar": (DraftVerify, NextToken),
}
"""By family; the first rule is the default where a bundle names none."""

RULES: Mapping[str, type[DecodingRule]] = {
    rule.name: rule for rules in RULES_OF_FAMILY.values() for rule in rules
}
"""By the rule's own name."""


def rules_of(family: str) -> tuple[type[DecodingRule], ...]:
    """Gives a family's decoding rules; ConfigError if this version does not know the family."""
    if family not in RULES_OF_FAMILY:
        raise ConfigError(
            f"family {family!r} is unknown to this version, which has "
            f"{', '.join(RULES_OF_FAMILY)}; install a newer dlm-edge"
        )
    return RULES_OF_FAMILY[family]


def read_rule(values: Mapping[str, Any], family: str | None = None) -> DecodingRule:
    """Reads what a rule gave as JSON, one of the family or of any; raises ConfigError."""
    rules = RULES.values() if family is None else rules_of(family)
    options = dict(values)
    name = options.pop("rule", next(iter(rules)).name)
    return find_rule(name, rules, of=_models(family)).from_options(options)


def with_rule(settings: Mapping[str, Any], own: DecodingRule, family: str) -> dict[str, Any]:
    """Gives settings, with the rule that an option belongs to where the user named none.

    An option that the own rule does not take chooses the first rule of the family that does.

    Args:
        settings: What the user gave, by name.
        own: The rule that decodes where no option chooses another.
        family: The model's.
    """
    if "rule" in settings:
        return dict(settings)
    known = own.options()
    for name in settings:
        if name not in known:
            for rule in rules_of(family):
                if name in rule.options():
                    return {"rule": rule.name, **settings}
    return dict(settings)


def decoding_settings(
    manifest: Manifest, asked: DecodingRule | Mapping[str, Any] | None
) -> DecodingRule:
    """Gives the decoding rule of a request or a command, checked.

    Args:
        manifest: The bundle's; its `decoding` holds the defaults.
        asked: A rule, taken as it is; or options that override the bundle's defaults (None: not
            given), among which `rule` names another rule.

    Raises:
        ConfigError: A rule or an option that the family does not have, a value out of range, or
            values that contradict each other.
        BundleError: The bundle's own defaults have such a fault.
    """
    family, rules = manifest.family, rules_of(manifest.family)
    if isinstance(asked, DecodingRule):
        find_rule(asked.name, rules, of=_models(family))
        return asked
    try:
        own = read_rule(manifest.decoding, family)
    except ConfigError as error:
        raise BundleError(
            f"the bundle's own decoding settings cannot be used ({error}): export it again, or use "
            "the version of dlm-edge that wrote it"
        ) from error
    overrides = {name: value for name, value in (asked or {}).items() if value is not None}
    rule = find_rule(overrides.pop("rule", own.name), rules, of=_models(family))
    return own.override(rule, overrides)


def _models(family: str | None) -> str:
    return "this version" if family is None else f"a model of family {family}"
