"""Whether a draft fits its target: asked before minutes of checks, and kept in the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ...jetson.forecast.forecast import Forecast, forecast_bundle, forecast_memory
from ...jetson.forecast.memory import MemoryForecast, require_fit
from ...jetson.targets import target as find_target
from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.manifest import Manifest, dims_text
from ...runtime.errors import ConfigError
from ...runtime.measure.page import Page
from ...runtime.side_by_side import for_batch
from ..settings import ExportSettings


def check_budget(
    bundle: Bundle, settings: ExportSettings, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Forecasts a draft on its target and returns what goes into the report.

    On a board that is the whole forecast, at one token per graph run (what a causal model gives);
    on a CPU the memory only, since rates would have to be measured first.

    Raises:
        ConfigError: It cannot fit; the message names the largest part and the setting that helps.
    """
    place = find_target(settings.target)
    forecast: Forecast | None = None
    if place.is_gpu:
        forecast = forecast_bundle(bundle, place, settings.mode, tokens_per_nfe=1.0)
        memory = forecast.memory
        for warning in (*forecast.warnings, *batches_that_lose(bundle.manifest, forecast)):
            progress(f"warning: {warning}")
    else:
        memory = forecast_memory(bundle, place)
    require_fit(memory, place)
    require_budget(memory, settings.max_memory_mib)
    return forecast.to_json() if forecast else {"target": place.name, "memory": memory.to_json()}


def batches_that_lose(manifest: Manifest, forecast: Forecast) -> Iterator[str]:
    """Yields a line for every shape whose batch makes fewer tokens/s than one text at a time."""
    for spec in manifest.graphs:
        together = forecast.graphs[spec.key].tokens_per_s
        alone = forecast.graphs[for_batch(spec, 1).key].tokens_per_s if spec.batch > 1 else 0.0
        if together < alone:
            yield (
                f"{spec.label}: {together:,.0f} tokens/s, fewer than one text at a time "
                f"({alone:,.0f}); export without --batch"
            )


_PARTS = {"kv": "KV cache", "context": "CUDA context"}


def show_forecast(page: Page, forecast: Mapping[str, Any]) -> None:
    """Adds to a page what `check_budget` returned."""
    memory = forecast["memory"]
    page.heading(f"Predicted for {_place(forecast)}")
    sizes = [(name, size) for name, size in memory.items() if name != "available" and size]
    page.table(("memory", "MiB"), [(_PARTS.get(n, n), f"{size:,.0f}") for n, size in sizes])
    if memory["available"] is not None:
        page.paragraph(f"{memory['available']:,.0f} MiB are available.", kind="note")
    if graphs := forecast.get("graphs"):
        each = f"tokens/s at {forecast['tokens_per_nfe']:g} per run"
        page.table(
            ("graph", "shape", "ms per run", each),
            [
                (
                    item["graph"],
                    dims_text(item["dims"]),
                    f"{item['step_ms']:.2f}",
                    f"{item['tokens_per_s']:,.0f}",
                )
                for item in graphs
            ],
        )


def _place(forecast: Mapping[str, Any]) -> str:
    return forecast["target"] + (f" in mode {forecast['mode']}" if forecast.get("mode") else "")


def forecast_lines(forecast: Mapping[str, Any]) -> list[str]:
    """Says in lines what `check_budget` returned: memory by part, then each graph shape's time."""
    memory = forecast["memory"]
    parts = " + ".join(
        f"{_PARTS.get(name, name)} {value:,.0f}"
        for name, value in memory.items()
        if name not in ("total", "available") and value
    )
    room = "" if memory["available"] is None else f" of {memory['available']:,.0f} available"
    lines = [f"predicted for {_place(forecast)}: {memory['total']:,.0f} MiB{room} = {parts}"]
    for item in forecast.get("graphs", ()):
        lines.append(
            f"predicted for {item['graph']}, {dims_text(item['dims'])}: "
            f"{item['step_ms']:.2f} ms per run, {item['tokens_per_s']:,.0f} tokens/s at "
            f"{forecast['tokens_per_nfe']:g} token per run"
        )
    return lines


def require_budget(memory: MemoryForecast, max_memory_mib: float | None) -> None:
    """Raises ConfigError if a forecast needs more than the user allows."""
    if max_memory_mib is not None and memory.total > max_memory_mib:
        part = max(memory.parts, key=lambda name: memory.parts[name])
        raise ConfigError(
            f"the bundle needs {memory.total:,.0f} MiB, --max-memory allows {max_memory_mib:,.0f}: "
            f"{part} alone take {memory.parts[part]:,.0f}; raise it or export smaller"
        )
