"""A run as one screen of text. Knows the record's keys, no plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..profile.run_record import STAGES

FIGURES = (
    ("tokens_per_s", "tokens/s"),
    ("ms_per_nfe", "ms per graph run, all included"),
    ("engine_ms_per_step", "ms per step, engine only"),
    ("tokens_per_nfe", "tokens per graph run"),
    ("nfe_per_block", "graph runs per block"),
    ("first_token_ms", "ms to first committed token"),
    ("first_block_ms", "ms to first finished block"),
)


def lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of a run's summary."""
    yield from _head(record)
    summary = record.get("summary")
    if summary:
        yield ""
        yield from _figures(summary)
        yield ""
        yield from _stages(summary)
    yield from _memory(record)
    yield from _power(record)
    yield from _predicted(record)
    yield from _sweep(record)


def _head(record: Mapping[str, Any]) -> Iterator[str]:
    machine, bundle, engine = record["machine"], record.get("bundle"), record.get("engine")
    if bundle and engine:
        decoding = record["settings"]["decoding"]
        rule = " ".join(f"{k} {v}" for k, v in decoding.items() if k != "repetition_penalty")
        parameters = bundle["num_parameters"]
        size = f"{parameters / 1e6:.2f} M parameters, " if parameters else ""
        yield f"{bundle['name']}: {bundle['family']} {bundle['precision']}, {size}{rule}"
        threads = f"{engine['threads']} thread{'s' if engine['threads'] > 1 else ''}"
        yield f"{engine['name']}, {threads}, on {_machine(machine)}"
    else:
        yield f"nothing was loaded, on {_machine(machine)}"
    yield from warnings(record)


def warnings(record: Mapping[str, Any]) -> Iterator[str]:
    """Yields what speaks against a run's figures."""
    if not record["complete"]:
        yield f"INTERRUPTED: {len(record.get('runs', ()))} texts were measured"
    for line in record.get("throttling", ()):
        yield f"THROTTLED: {line}; the figures are those of cooling or supply, not of the model"
    for line in record.get("foreign", ()):
        yield f"ANOTHER TARGET: {line}"
    for line in record.get("crowding", ()):
        yield f"CROWDED: {line}"


def _machine(machine: Mapping[str, Any]) -> str:
    parts = [machine["model"], f"{machine['cores']} cores"]
    if machine["jetpack"]:
        parts.append(f"JetPack {machine['jetpack']}")
    if machine["power_mode"]:
        parts.append(f"mode {machine['power_mode']}")
    return ", ".join(parts)


def _figures(summary: Mapping[str, Any]) -> Iterator[str]:
    yield f"{'':<30}{'median':>10}{'quartiles':>20}"
    for name, label in FIGURES:
        figure = summary["figures"][name]
        if figure["count"]:
            spread = f"{figure['low']:.4g} to {figure['high']:.4g}"
            yield f"{label:<30}{figure['median']:>10.4g}{spread:>20}"


def _stages(summary: Mapping[str, Any]) -> Iterator[str]:
    yield f"{'stage':<30}{'ms per text':>10}{'share':>10}"
    for name in STAGES:
        figure = summary["stages_ms"][name]
        yield f"{name:<30}{figure['median']:>11.4g}{summary['stage_share'][name]:>10.1%}"


def _memory(record: Mapping[str, Any]) -> Iterator[str]:
    memory = record.get("memory", {})
    if memory.get("parts"):
        yield ""
        parts = ", ".join(f"{part['name']} {part['mib']:.1f}" for part in memory["parts"])
        yield f"memory, MiB: {parts}"
        held = ", ".join(f"{k} {v:.1f}" for k, v in memory.get("engine_account_mib", {}).items())
        peak = f"highest {memory['peak_mib']:.1f}" if "peak_mib" in memory else ""
        if "load_peak_mib" in memory:
            peak += f", {memory['load_peak_mib']:.1f} until loaded"
        if "malloc_peak_mib" in memory:
            peak += f", malloc at most {memory['malloc_peak_mib']:.1f}"
        if "device_peak_mib" in memory:
            peak += f", device in use at most {memory['device_peak_mib']:.1f}"
        yield "; ".join(
            part for part in (peak, f"engine's own account: {held}" if held else "") if part
        )


def _power(record: Mapping[str, Any]) -> Iterator[str]:
    energy, sensors = record.get("energy"), record.get("sensors", {})
    if energy:
        idle = f", idle {energy['idle_watts']:.2f} W" if "idle_watts" in energy else ""
        yield (
            f"power: {energy['watts']:.2f} W on {'+'.join(energy['rails'])}{idle}; "
            f"{energy['tokens_per_joule']:.3g} tokens per joule"
        )
    for name, reason in sensors.get("lost", {}).items():
        yield f"sensor lost: {name}, {reason}"
    for line in sensors.get("missing", ()):
        yield f"no {line}"


def _predicted(record: Mapping[str, Any]) -> Iterator[str]:
    rows = record.get("comparison", ())
    if rows:
        target = record["predicted"]
        yield ""
        head = f"against the forecast for {target['target']} {target['mode'] or ''}".rstrip()
        width = max(len(head), *(len(row["quantity"]) for row in rows)) + 1
        if record.get("crowding"):
            yield "CROWDED: the ratios of time below mean nothing, other programs took the CPU"
        yield f"{head:<{width}}{'predicted':>11}{'measured':>11}{'ratio':>8}"
        for row in rows:
            yield (
                f"{row['quantity']:<{width}}{_number(row['predicted']):>11}"
                f"{_number(row['measured']):>11}{_number(row['ratio']):>8}"
            )


def _sweep(record: Mapping[str, Any]) -> Iterator[str]:
    sweep = record.get("sweep")
    if not sweep or not sweep["cells"]:
        return
    yield ""
    judge = sweep["judge"] or "the bundle's own bound"
    yield f"sweep, {sweep['texts']} texts each, judged by {judge}; * is on the frontier"
    columns = ("", "tokens/s", "tokens/NFE", "bits/char", "entropy", "settings")
    yield "{:<2}{:>9}{:>11}{:>15}{:>9}  {}".format(*columns)
    for cell in sorted(sweep["cells"], key=lambda cell: -cell["tokens_per_s"]):
        yield sweep_line(cell)
    yield from sweep_notes(sweep)


def sweep_notes(sweep: Mapping[str, Any]) -> Iterator[str]:
    """Yields what must be known of the judge's figures."""
    judged = [cell["quality"] for cell in sweep["cells"] if cell.get("quality")]
    if any(quality.get("together") for quality in judged):
        yield (
            "texts of a setting were read as one, since each alone is shorter than the judge's "
            "smallest block"
        )
    if any(quality["bits_per_char"] is None for quality in judged):
        yield (
            "no bits per character where texts are shorter than the judge's smallest block: give a "
            "larger --max-tokens or --texts, or another --judge"
        )


def sweep_line(cell: Mapping[str, Any]) -> str:
    """Returns one cell of a sweep in a line."""
    quality = cell.get("quality") or {}
    bits = quality.get("bits_per_char")
    width = quality.get("half_width")
    shown = "-" if bits is None else f"{bits:.3f}" + ("" if width is None else f" ±{width:.3f}")
    entropy = f"{quality['entropy']:.2f}" if quality else "-"
    mark = "*" if cell.get("frontier") else ""
    return (
        f"{mark:<2}{cell['tokens_per_s']:>9.1f}{cell['tokens_per_nfe']:>11.2f}{shown:>15}"
        f"{entropy:>9}  {cell['flags']}"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def compare_lines(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    """Yields a comparison's lines: a quantity, each run's figure, the ratio to the first."""
    yield f"{'':<34}{names[0][:22]:>24}{names[1][:22]:>24}{'ratio':>9}"
    for quantity, first, second, ratio in rows:
        yield f"{quantity:<34}{first:>24}{second:>24}{_number(ratio):>9}"
