"""`--auto`: the block size, context buckets and precision with the best predicted tokens/s.

What a block size is worth depends on the model: how many tokens a graph run commits, and how good
the text is. Both are measured, by decoding and scoring real text with the traced graph on this
machine; how long a run takes on the target is predicted (`jetson/forecast/forecast.py`). Of all
candidates that fit the memory and lose no more quality than allowed, the fastest is taken; the
choice and every candidate go into the report.

Knows no family: it decodes and scores as the device does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ...jetson.targets import target as find_target
from ...runtime.errors import CalibrationError, ConfigError, EngineError
from ..settings import PRECISIONS, ExportSettings
from .candidates import Candidate, find_candidates


def choose(
    checkpoint_path: Path,
    settings: ExportSettings,
    progress: Callable[[str], None],
    *,
    precisions: Sequence[str] = (),
) -> tuple[ExportSettings, dict[str, Any]]:
    """Returns the settings to export with, and the candidates for the report.

    Args:
        settings: What the user fixed: given blocks or contexts are the only candidates. Its
            `max_loss` and `max_memory_mib` are the budgets.
        precisions: Candidates; empty: all that the exporter has. One that cannot be made here is
            left out, with a line that says why.

    Raises:
        ConfigError: No candidate fits the budgets.
        DlmError: The checkpoint cannot be used, or the only precision cannot be made.
    """
    # No board has been seen to take int4: there it is made where it is asked for.
    possible = [p for p in PRECISIONS if p != "int4" or not find_target(settings.target).is_gpu]
    wanted = precisions or possible
    candidates: list[Candidate] = []
    left_out: list[str] = []
    for precision in wanted:
        try:
            candidates += find_candidates(
                # Canvases on file have the shapes of what is exported in the end.
                checkpoint_path,
                replace(settings, precision=precision, canvases=None),
                progress,
            )
        except (CalibrationError, EngineError) as error:
            if len(wanted) == 1:
                raise
            progress(f"auto: {precision} is left out: {error}")
            left_out.append(f"{precision} ({error})")
    if not candidates:
        raise ConfigError(
            f"--auto can make none of the precisions here: {'; '.join(left_out)}; mend one of "
            "these, or name another --precision"
        )
    judged = _judge(candidates, settings)
    best = max((item for item in judged if item.fits), key=_rate, default=None)
    if best is None:
        raise _nothing_fits(judged, settings)
    progress(
        f"auto: {best.precision}, {best.way}, contexts "
        f"{', '.join(map(str, best.contexts))}: {best.tokens_per_s:,.0f} tokens/s predicted on "
        f"{settings.target}"
    )
    chosen = replace(
        settings,
        precision=best.precision,
        blocks=best.blocks,
        contexts=best.contexts or settings.contexts,
    )
    return chosen, {"chosen": asdict(best), "candidates": [asdict(item) for item in judged]}


def _rate(candidate: Candidate) -> float:
    return candidate.tokens_per_s


def _judge(candidates: list[Candidate], settings: ExportSettings) -> list[Candidate]:
    """Holds every candidate to the budgets."""
    best = min(item.perplexity for item in candidates)
    judged = []
    for item in candidates:
        loss = 100 * (item.perplexity / best - 1)
        fits = item.fits and loss <= settings.budget
        judged.append(replace(item, loss_percent=loss, fits=fits))
    return judged


def _nothing_fits(judged: list[Candidate], settings: ExportSettings) -> ConfigError:
    smallest = min(item.memory_mib for item in judged)
    least = min(item.loss_percent for item in judged)
    return ConfigError(
        f"--auto found nothing that fits {settings.target} within its budgets: the smallest "
        f"candidate needs {smallest:,.0f} MiB, the best loses {least:.2f} % of the allowed "
        f"{settings.budget:g} %; raise --max-memory or --max-loss, or give more --block sizes"
    )
