"""The device's table of families: the only place on this side that lists them."""

from collections.abc import Mapping
from typing import Any

from ..bundle.manifest import Manifest
from ..decoding import DecodingSettings
from ..engines.base import EngineSet
from ..errors import ConfigError
from ..ops.base import Ops
from ..ops.choose import ops_for
from .ar.family import CausalFamily
from .base import Buckets, DeviceFamily, LoadedModel, resolve_settings
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
    family = find_family(manifest.family)
    return LoadedModel(
        manifest=manifest, engines=engines, ops=ops or ops_for(engines), family=family
    )
