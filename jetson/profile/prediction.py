"""Compares the forecast with the measurement: the same quantities, with their ratio.

The forecast is for the tokens per graph run that were measured, since it cannot know a model's
confidence; all else in it comes from the graphs and the target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...runtime.bundle.bundle import default_bundle_path, open_bundle
from ...runtime.bundle.manifest import dims_text, graph_key
from ...runtime.errors import ConfigError
from ...runtime.families.base import HEAD_PHASE
from ..forecast.forecast import forecast_bundle
from ..targets import Target, normal_mode_name
from ..targets import target as find_target

_MEASURED_PARTS = {
    "runtime, weights": (
        "interpreter and packages", "bundle and tokenizer", "engine's library",
        "weights and session",
    ),
    "activations, kv": ("buffers and activations",),
}  # fmt: skip
"""Parts of the measurement by parts of the forecast. A session's code comes with its weights; cache
and activations fill while texts run, as far as these use the shapes that the forecast has."""


def add_prediction(
    record: dict[str, Any], bundle: Path | None, *, target: str | None, mode: str | None
) -> None:
    """Adds `predicted` (the forecast) and `comparison` (its rows) to a run's record.

    Args:
        record: with a summary; without one nothing is added.
        target: name; None: this machine, as far as the engine used it.
        mode: power mode of the target; None: the one that is set, else the target's default.

    Raises:
        ConfigError: unknown target or mode, or one that must be named.
    """
    summary = record.get("summary")
    if not summary or not summary["figures"]["tokens_per_nfe"]["count"]:
        return
    name = _place(record) if target is None else target
    place = find_target(name)
    if mode is None and place.modes and name == record["machine"]["target"]:
        mode = _set_mode(record, place)
    forecast = forecast_bundle(
        open_bundle(default_bundle_path() if bundle is None else bundle),
        place,
        mode if place.modes else _no_mode(name, mode),
        tokens_per_nfe=summary["figures"]["tokens_per_nfe"]["median"],
        threads=None if place.modes else record["engine"]["threads"],
    )
    record["predicted"] = forecast.to_json()
    record["comparison"] = list(compare_with_forecast(record, record["predicted"]))


def _no_mode(name: str, mode: str | None) -> None:
    if mode is not None:
        raise ConfigError(f"--mode {mode}: target {name} has no power modes; leave it out")


def _place(record: Mapping[str, Any]) -> str:
    """Returns the target that this machine is; a board whose CPU did the work counts as host."""
    if record["engine"]["name"].endswith("cpu"):
        return "host"
    found = record["machine"]["target"]
    if found == "host":
        raise ConfigError("this machine's GPU has no forecast; name a --target")
    return found


def _set_mode(record: Mapping[str, Any], place: Target) -> str:
    """Returns the power mode that was set; ConfigError for one that the target has not."""
    found = record["machine"]["power_mode"]
    if found is None or normal_mode_name(found) not in place.modes:
        raise ConfigError(
            f"the board's power mode {found or 'cannot be read and'} is none of {place.name}'s; "
            f"give --mode, one of {', '.join(place.modes)}"
        )
    return found


def compare_with_forecast(
    record: Mapping[str, Any], forecast: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yields rows of quantity, unit, predicted, measured and ratio."""
    yield from _times(record, forecast)
    yield from _memory(record["memory"], forecast["memory"])
    energy = record.get("energy")
    planned = [g for g in forecast["graphs"] if g["watts"] is not None]
    if energy and planned:
        watts = planned[0]["watts"]
        yield _row("power while running", "W", watts, energy["watts"])


def _times(record: Mapping[str, Any], forecast: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    summary = record["summary"]
    planned = {graph_key(g["graph"], g["dims"]): g for g in forecast["graphs"]}
    steps = [p for p in summary["phases"] if p["phase"] not in ("prefill", "commit", HEAD_PHASE)]
    for phase in steps:
        found = planned.get(graph_key(phase["graph"], phase["dims"]))
        if found is not None:
            what = "step" if phase["phase"] in ("denoise", "step") else phase["phase"]
            where = f"{what}, {dims_text(phase['dims'])}"
            # A pass that waits after every stage replays no captured step.
            settled = record.get("stages_settled", False)
            if not settled:
                yield _row(where, "ms", found["step_ms"], phase["median"])
            if settled or found["step_ms_uncaptured"] != found["step_ms"]:
                yield _row(
                    f"{where}, not captured", "ms", found["step_ms_uncaptured"], phase["median"]
                )
    most = max(steps, key=lambda phase: phase["count"], default=None)
    found = planned.get(graph_key(most["graph"], most["dims"])) if most else None
    if found is not None:
        around = sum(
            summary["stages_ms"][name]["median"] for name in ("sampling", "host")
        ) / _median_nfe(record)
        yield _row("sampling and host, per run", "ms", found["outside_ms"], around)
        speed = summary["figures"]["tokens_per_s"]["median"]
        yield _row("tokens per second", "tokens/s", found["tokens_per_s"], speed)
        if record.get("energy") and found["joules_per_token"]:
            per_joule = record["energy"]["tokens_per_joule"]
            yield _row("tokens per joule", "1/J", 1 / found["joules_per_token"], per_joule)


def _median_nfe(record: Mapping[str, Any]) -> float:
    counts = sorted(run["nfe"] for run in record["runs"])
    return max(1, counts[len(counts) // 2])


def _memory(measured: Mapping[str, Any], forecast: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    parts = {part["name"]: part["mib"] for part in measured.get("parts", ())}
    for name, sources in _MEASURED_PARTS.items():
        if all(source in parts for source in sources):
            predicted = sum(forecast[part] for part in name.split(", "))
            found = sum(parts[source] for source in sources)
            yield _row(f"memory: {name.replace(', ', ' and ')}", "MiB", predicted, found)
    if measured.get("peak_mib"):
        predicted = forecast["total"] - forecast["context"]
        yield _row("memory: all, resident", "MiB", predicted, measured["peak_mib"])


def _row(quantity: str, unit: str, predicted: float, measured: float | None) -> dict[str, Any]:
    ratio = measured / predicted if predicted and measured is not None else None
    return {
        "quantity": quantity,
        "unit": unit,
        "predicted": round(predicted, 5),
        "measured": None if measured is None else round(measured, 5),
        "ratio": None if ratio is None else round(ratio, 4),
    }
