"""JetPack releases for Orin: which CUDA, TensorRT and Python a board brings. Data only."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from .types import JetPack

_NOTES = "OE4T/meta-tegra docs/release-notes"

_CORE = "OE4T/meta-tegra scarthgap: cuda-cudart_12.6.68, tensorrt-core_10.3.0.30"
_THOR = "developer.nvidia.com/embedded/jetpack/downloads/archive-7.1"
_ROWS = (
    ("6.0", "36.3.0", "3.10", "12.2", "8.6.2", True,
     "too old: TensorRT 10.3 is the oldest that this package builds with",
     f"{_NOTES}/JetPack-6.0-L4T-R36.3.0-Notes.md; jetson-containers, TensorRT table"),
    ("6.1", "36.4.0", "3.10", "12.6", "10.3.0", True, "", _CORE),
    ("6.2", "36.4.3", "3.10", "12.6", "10.3.0", True, "adds the Super power modes", _CORE),
    ("6.2.1", "36.4.4", "3.10", "12.6", "10.3.0", True,
     "from L4T 36.4.7 on, its updates, NvMap may fail large allocations",
     "unslothai/unsloth issue 3113: nvidia-jetpack 6.2.1+b38, TensorRT 10.3.0.30"),
    ("6.2.2", "36.5.0", "3.10", "12.6", "10.3.0", True, "", f"{_NOTES}/JetPack-6.2.2 notes"),
    ("6.2.3", "36.5.2", "3.10", "12.6", "10.3.0", True, "",
     f"{_NOTES}/JetPack-6.2.3 notes: no updates on the compute stack"),
    ("7.0", "38.2", "3.12", "13.0", "10.13.3", False, "Thor only", _THOR),
    ("7.1", "38.4", "3.12", "13.0", "10.13.3", False, "Thor only", _THOR),
    ("7.2", "39.2.0", "3.12", "13.2", "10.16.2", True, "the first JetPack 7 for Orin",
     f"{_NOTES}/JetPack-7.2-L4T-R39.2.0-Notes.md"),
    ("7.2.1", "39.2.1", "3.12", "13.2", "10.16.2", True, "",
     "public dump of an Orin Nano Super, 2026-09-19"),
)  # fmt: skip
_COLUMNS = tuple(field.name for field in fields(JetPack))


def _jetpack(row: tuple[Any, ...]) -> JetPack:
    return JetPack(**dict(zip(_COLUMNS, row, strict=True)))


JETPACKS = tuple(map(_jetpack, _ROWS))
"""Oldest first."""


def jetpack_of(l4t: str) -> JetPack | None:
    """Returns the JetPack of an L4T release (`36.4.7`), or the newest one of its line before it.

    Args:
        l4t: As /etc/nv_tegra_release has it: major.minor.patch.

    Returns:
        None if the release is of no line known here.
    """
    wanted = _numbers(l4t)
    fitting = [
        item
        for item in JETPACKS
        if _numbers(item.l4t)[:2] == wanted[:2] and _numbers(item.l4t) <= wanted
    ]
    return fitting[-1] if fitting else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def jetpack_lines(*, sources: bool = False) -> list[str]:
    """Returns the table of releases as text; with `sources`, where each row is from as well."""
    head = ("JetPack", "L4T", "Python", "CUDA", "TensorRT", "")
    rows = [
        (item.version, item.l4t, item.python, item.cuda, item.tensorrt, item.note)
        for item in JETPACKS
    ]
    lines = ["{:9} {:8} {:7} {:5} {:9} {}".format(*row).rstrip() for row in (head, *rows)]
    return lines + [f"{item.version:9} from {item.source}" for item in JETPACKS if sources]
