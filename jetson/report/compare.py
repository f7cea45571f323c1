"""Two runs side by side. Knows the record's keys; reads them back from disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...runtime.errors import DataError, brief
from ...runtime.files import parse_json
from ..profile.profile import SCHEMA
from .table import FIGURES

_FACTS = (
    ("bundle", ("bundle", "name")),
    ("precision", ("bundle", "precision")),
    ("engine", ("engine", "name")),
    ("threads", ("engine", "threads")),
    ("machine", ("machine", "model")),
    ("JetPack", ("machine", "jetpack")),
    ("power mode", ("machine", "power_mode")),
    ("rule", ("settings", "decoding", "rule")),
)
_NUMBERS = (
    ("highest memory, MiB", ("memory", "peak_mib")),
    ("memory while running, MiB", ("memory", "steady_mib")),
    ("power, W", ("energy", "watts")),
    ("idle power, W", ("energy", "idle_watts")),
    ("tokens per joule", ("energy", "tokens_per_joule")),
)


def read_run(path: Path) -> dict[str, Any]:
    """Reads a run's JSON; raises DataError."""
    try:
        found = parse_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check the path") from error
    except ValueError as error:
        raise DataError(
            f"{path} is not JSON ({brief(error, 200)}); name the run.json of a profile"
        ) from error
    if not isinstance(found, dict) or found.get("kind") != "dlm-profile":
        raise DataError(f"{path} is not a run of dlm-profile; name the run.json in its folder")
    if found.get("schema") != SCHEMA:
        raise DataError(
            f"{path} has schema {found.get('schema')}, this version reads {SCHEMA}: measure again"
        )
    return found


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[list[Any]]:
    """Returns rows of (quantity, first, second, ratio second / first or None)."""
    rows: list[list[Any]] = []
    for label, path in _FACTS:
        a, b = _at(first, path), _at(second, path)
        if a is not None or b is not None:
            rows.append([label, _word(a), _word(b), None])
    for name, label in FIGURES:
        path = ("summary", "figures", name)
        a, b = _at(first, path), _at(second, path)
        if a and b and a["count"] and b["count"]:
            rows.append([label, _spread(a), _spread(b), _ratio(a["median"], b["median"])])
    for label, path in _NUMBERS:
        a, b = _at(first, path), _at(second, path)
        if a is not None or b is not None:
            rows.append([label, _word(a), _word(b), _ratio(a, b)])
    for name in _at(first, ("summary", "stages_ms")) or ():
        path = ("summary", "stages_ms", name, "median")
        a, b = _at(first, path), _at(second, path)
        rows.append([f"{name}, ms per text", _word(a), _word(b), _ratio(a, b)])
    return rows


def _at(record: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    found: Any = record
    for name in path:
        if not isinstance(found, Mapping) or found.get(name) is None:
            return None
        found = found[name]
    return found


def _word(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)[:22]


def _spread(figure: Mapping[str, Any]) -> str:
    return f"{figure['median']:.4g} ({figure['low']:.4g}-{figure['high']:.4g})"


def _ratio(first: Any, second: Any) -> float | None:
    return second / first if first and second is not None else None
