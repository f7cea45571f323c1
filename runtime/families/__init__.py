"""The device's table of families: the only place on this side that lists them."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..bundle.manifest import GraphSpec, Manifest
from ..decoding import DecodingSettings
from ..errors import ConfigError
from .ar.family import CausalFamily
from .base import Buckets, DeviceFamily, resolve_settings
from .mdlm.family import MaskedFamily
from .sedd.family import ScoreFamily
from .tidar.family import DraftFamily

FAMILIES: Mapping[str, DeviceFamily] = {
    family.name: family for family in (MaskedFamily(), CausalFamily(), ScoreFamily(), DraftFamily())
}


def find_family(name: str) -> DeviceFamily:
    """Gives a family by name; raises ConfigError if this version does not know it."""
    if name not in FAMILIES:
        raise ConfigError(
            f"family {name!r} is unknown to this version, which has {', '.join(FAMILIES)}; "
            "install a newer dlm-edge"
        )
    return FAMILIES[name]


def decoding_settings(manifest: Manifest, overrides: Mapping[str, Any]) -> DecodingSettings:
    """Gives a bundle's settings with overrides (None: not given) laid over them.

    Raises:
        ConfigError: An unknown family or setting, a value out of range, a contradiction.
    """
    return resolve_settings(manifest, find_family(manifest.family), overrides)


def decoding_blocks(manifest: Manifest) -> Mapping[int, Buckets]:
    """Gives a bundle's shapes per value of the setting `block_size`; see DeviceFamily.blocks."""
    return find_family(manifest.family).blocks(manifest, manifest.graphs)


def text_positions(
    manifest: Manifest, specs: Sequence[GraphSpec], settings: DecodingSettings
) -> int:
    """Gives how many positions a text may have before its window slides.

    Raises:
        ConfigError: An unknown family, or no graph has the block size of the settings.
    """
    return find_family(manifest.family).positions(manifest, specs, settings)
