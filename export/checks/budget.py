"""Whether a draft fits its target: asked before minutes of checks, and kept in the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...jetson.forecast.plan import MemoryPlan, Plan, plan_bundle, plan_memory, require_fit
from ...jetson.targets import target as find_target
from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.manifest import dims_text
from ...runtime.errors import ConfigError
from ..settings import ExportSettings


def check_budget(
    bundle: Bundle, settings: ExportSettings, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Plans a draft on its target and returns what goes into the report.

    On a board that is the whole plan, at one token per graph run (what a causal model gives); on a
    CPU the memory only, since rates would have to be measured first.

    Args:
        bundle: Traced and unpacked, not yet checked.
        settings: Where it will run, and what it may take.
        progress: Called with each warning.

    Raises:
        ConfigError: It cannot fit; the message names the largest part and the setting that helps.
    """
    place = find_target(settings.target)
    plan: Plan | None = None
    if place.is_gpu:
        plan = plan_bundle(bundle, place, settings.mode, tokens_per_nfe=1.0)
        memory = plan.memory
        for warning in plan.warnings:
            progress(f"warning: {warning}")
    else:
        memory = plan_memory(bundle, place)
    require_fit(memory, place)
    require_budget(memory, settings.max_memory_mib)
    return plan.to_json() if plan else {"target": place.name, "memory": memory.to_json()}


_PARTS = {"kv": "KV cache", "context": "CUDA context"}


def forecast_lines(plan: Mapping[str, Any]) -> list[str]:
    """Says in lines what `check_budget` returned: memory by part, then each graph shape's time."""
    memory = plan["memory"]
    parts = " + ".join(
        f"{_PARTS.get(name, name)} {value:,.0f}"
        for name, value in memory.items()
        if name not in ("total", "available") and value
    )
    place = plan["target"] + (f" in mode {plan['mode']}" if plan.get("mode") else "")
    room = "" if memory["available"] is None else f" of {memory['available']:,.0f} available"
    lines = [f"predicted for {place}: {memory['total']:,.0f} MiB{room} = {parts}"]
    for item in plan.get("graphs", ()):
        lines.append(
            f"predicted for {item['graph']}, {dims_text(item['dims'])}: "
            f"{item['step_ms']:.2f} ms per run, {item['tokens_per_s']:,.0f} tokens/s at "
            f"{plan['tokens_per_nfe']:g} token per run"
        )
    return lines


def require_budget(memory: MemoryPlan, max_memory_mib: float | None) -> None:
    """Raises ConfigError if a plan needs more than the user allows."""
    if max_memory_mib is not None and memory.total > max_memory_mib:
        part = max(memory.parts, key=lambda name: memory.parts[name])
        raise ConfigError(
            f"the bundle needs {memory.total:,.0f} MiB, --max-memory allows {max_memory_mib:,.0f}: "
            f"{part} alone take {memory.parts[part]:,.0f}; raise it or export smaller"
        )
