"""The device's table of families: the only place on this side that lists them."""

from collections.abc import Mapping

from ..errors import ConfigError
from .ar import CausalFamily
from .base import DeviceFamily
from .mdlm import MaskedFamily

FAMILIES: Mapping[str, DeviceFamily] = {
    family.name: family for family in (MaskedFamily(), CausalFamily())
}


def find_family(name: str) -> DeviceFamily:
    """Gives a family by name; raises ConfigError if this version does not know it."""
    if name not in FAMILIES:
        raise ConfigError(
            f"family {name!r} is unknown to this version, which has {', '.join(FAMILIES)}; "
            "install a newer dlm-edge"
        )
    return FAMILIES[name]
