"""The families that can be trained and exported, by name."""

from __future__ import annotations

from collections.abc import Mapping

from .ar.family import Ar
from .base import Family
from .dimba.family import Dimba
from .mdlm.family import Mdlm
from .sedd.family import Sedd
from .tidar.family import Tidar

FAMILIES: Mapping[str, Family] = {
    "mdlm": Mdlm(),
    "ar": Ar(),
    "sedd": Sedd(),
    "tidar": Tidar(),
    "dimba": Dimba(),
}
