"""The families that can be trained and exported, by name."""

from __future__ import annotations

from collections.abc import Mapping

from .ar import Ar
from .base import Family
from .mdlm import Mdlm
from .sedd import Sedd
from .tidar import Tidar

FAMILIES: Mapping[str, Family] = {"mdlm": Mdlm(), "ar": Ar(), "sedd": Sedd(), "tidar": Tidar()}
