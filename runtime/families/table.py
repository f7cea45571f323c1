"""The device's table of families: the only place on this side that lists them.

A family is its decoding rules, and a function that imports the rest. So this module imports neither
NumPy nor an engine, and a command line lists all rules at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..decoding import DecodingRule, rule_from, rule_over
from ..errors import ConfigError
from .dimba.rules import Ddim, DpmSolver
from .mdlm import rules as mdlm
from .next_token import NextToken
from .sedd.rules import Euler, Tweedie
from .tidar.rules import DraftVerify

if TYPE_CHECKING:
    from ..bundle.manifest import Manifest
    from ..engines.base import EngineSet
    from ..ops.core import Ops
    from .base import Buckets, DeviceFamily, LoadedModel


class Entry(NamedTuple):
    """What the table holds of a family."""

    rules: tuple[type[DecodingRule], ...]
    """The first is the default where a bundle names none."""
    load: Callable[[], DeviceFamily]
    """Imports and makes it."""


def _mdlm() -> DeviceFamily:
    from .mdlm.family import MaskedFamily

    return MaskedFamily()


def _ar() -> DeviceFamily:
    from .ar.family import CausalFamily

    return CausalFamily()


def _sedd() -> DeviceFamily:
    from .sedd.family import ScoreFamily

    return ScoreFamily()


def _tidar() -> DeviceFamily:
    from .tidar.family import DraftFamily

    return DraftFamily()


def _dimba() -> DeviceFamily:
    from .dimba.family import LatentFamily

    return LatentFamily()


FAMILIES: Mapping[str, Entry] = {
    "mdlm": Entry(mdlm.RULES, _mdlm),
    "ar": Entry((NextToken,), _ar),
    "sedd": Entry((Tweedie, Euler), _sedd),
    "tidar": Entry((DraftVerify, NextToken), _tidar),
    "dimba": Entry((Ddim, DpmSolver), _dimba),
}

RULES: Mapping[str, type[DecodingRule]] = {
    rule.name: rule for entry in FAMILIES.values() for rule in entry.rules
}
"""By the rule's own name."""


def _entry(family: str) -> Entry:
    if family not in FAMILIES:
        raise ConfigError(
            f"family {family!r} is unknown to this version, which has "
            f"{', '.join(FAMILIES)}; install a newer dlm-edge"
        )
    return FAMILIES[family]


def rules_of(family: str) -> tuple[type[DecodingRule], ...]:
    """Gives a family's decoding rules; ConfigError if this version does not know the family."""
    return _entry(family).rules


def find_family(name: str) -> DeviceFamily:
    """Gives a family by name; ConfigError if this version does not know it."""
    return _entry(name).load()


def read_rule(values: Mapping[str, Any], family: str | None = None) -> DecodingRule:
    """Reads what a rule gave as JSON, one of the family or of any; raises ConfigError."""
    if family is None:
        return rule_from(values, RULES.values(), of="this version")
    return rule_from(values, rules_of(family), of=f"a model of family {family}")


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
    """Gives the decoding rule that a bundle takes for what is asked; see `rule_over`."""
    rules, of = rules_of(manifest.family), f"a model of family {manifest.family}"
    return rule_over(manifest.decoding, asked, rules, of=of)


def decoding_blocks(manifest: Manifest) -> Mapping[int, Buckets]:
    """Gives a bundle's shapes per value of the setting `block_size`; see DeviceFamily.blocks."""
    return find_family(manifest.family).blocks(manifest, manifest.graphs)


def load_model(manifest: Manifest, engines: EngineSet, ops: Ops | None = None) -> LoadedModel:
    """Joins a manifest and the engines that run its graphs.

    Args:
        manifest: Of the bundle.
        engines: Of all or some of its shapes.
        ops: Those of the engines' buffers; None: made here.

    Raises:
        ConfigError: This version does not know the family.
        DeviceError: Kernels cannot be compiled or loaded.
    """
    from ..ops.host import ops_for
    from .base import LoadedModel

    entry = _entry(manifest.family)
    return LoadedModel(
        manifest=manifest,
        engines=engines,
        ops=ops or ops_for(engines),
        family=entry.load(),
        rules=entry.rules,
    )
