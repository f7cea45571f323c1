"""The device's table of families: the only place on this side that lists them."""

from collections.abc import Mapping

from ..bundle.manifest import Manifest
from ..engines.base import EngineSet
from ..ops.core import Ops
from ..ops.host import ops_for
from . import rules_of
from .ar.family import CausalFamily
from .base import Buckets, DeviceFamily, LoadedModel
from .mdlm.family import MaskedFamily
from .sedd.family import ScoreFamily
from .tidar.family import DraftFamily

FAMILIES: Mapping[str, DeviceFamily] = {
    family.name: family for family in (MaskedFamily(), CausalFamily(), ScoreFamily(), DraftFamily())
}


def find_family(name: str) -> DeviceFamily:
    """Gives a family by name; raises ConfigError if this version does not know it."""
    rules_of(name)
    return FAMILIES[name]


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
