"""`--auto`: the block size, context buckets and precision with the best predicted tokens/s.

What a block size is worth depends on the model: how many tokens a graph run commits, and how good
the text is. Both are measured, by decoding and scoring real text with the traced graph on this
machine; how long a run takes on the target is predicted (`jetson/plan.py`). Of all candidates that
fit the memory and lose no more quality than allowed, the fastest is taken; the choice and every
candidate go into the report.

Knows no family: it decodes and scores as the device does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..jetson.plan import Plan, plan_bundle
from ..jetson.targets import target as find_target
from ..runtime.bundle import Bundle
from ..runtime.engines import EngineSet, open_engines
from ..runtime.errors import ConfigError
from ..runtime.evaluate import evaluate_ids
from ..runtime.families import decoding_settings
from ..runtime.families.base import Request
from ..runtime.generate import generate
from ..runtime.ops.numpy_ops import NumpyOps
from .pack import PRECISIONS, ExportSettings, draft_bundle
from .source import Source, load_source

MAX_LOSS_PERCENT = 1.0
"""Default quality budget: how much worse than the best candidate the bound may be."""
SAMPLES, SAMPLE_TOKENS = 2, 128
"""Texts decoded per block size, and their length at most."""
BOUND_SAMPLES = 8
"""Monte-Carlo draws per window; equal seeds give all candidates equal masks where blocks agree."""
WORTH = 0.02
"""A further context bucket must make decoding this much faster: each is one more profile to
build."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One choice, with what is measured and predicted for it."""

    precision: str
    block: int
    contexts: tuple[int, ...]
    nats_per_token: float
    """Bound on real text."""
    loss_percent: float
    """How much worse than the best candidate's."""
    tokens_per_nfe: float
    """Measured by decoding."""
    tokens_per_s: float
    """Predicted, over a text as long as the model's positions."""
    memory_mib: float
    fits: bool
    """Whether memory and quality are within their budgets."""


def choose(
    checkpoint_path: Path,
    settings: ExportSettings,
    progress: Callable[[str], None],
    *,
    precisions: Sequence[str] = (),
    max_loss_percent: float = MAX_LOSS_PERCENT,
) -> tuple[ExportSettings, dict[str, Any]]:
    """Returns the settings to export with, and the candidates for the report.

    Args:
        checkpoint_path: The checkpoint folder.
        settings: What the user fixed: given blocks or contexts are the only candidates.
        progress: Told each candidate.
        precisions: Candidates; empty: all that the exporter has.
        max_loss_percent: Quality budget, percent of the bound in nats.

    Raises:
        ConfigError: No candidate fits the budgets.
        DlmError: The checkpoint cannot be used.
    """
    candidates: list[Candidate] = []
    for precision in precisions or PRECISIONS:
        given = replace(settings, precision=precision)
        source = load_source(
            checkpoint_path,
            precision=precision,
            target=settings.target,
            decoding=settings.decoding,
        )
        if not given.contexts:
            given = replace(given, contexts=_buckets(source))
        with tempfile.TemporaryDirectory(prefix="dlm-auto-") as name:
            draft, _, _ = draft_bundle(source, given, Path(name), progress)
            candidates += _candidates(draft, given, source.text(settings.data), progress)
    judged = _judge(candidates, settings, max_loss_percent)
    best = max((item for item in judged if item.fits), key=_rate, default=None)
    if best is None:
        raise _nothing_fits(judged, settings, max_loss_percent)
    progress(
        f"auto: {best.precision}, block {best.block}, contexts "
        f"{', '.join(map(str, best.contexts))}: {best.tokens_per_s:,.0f} tokens/s predicted on "
        f"{settings.target}"
    )
    chosen = replace(
        settings,
        precision=best.precision,
        blocks=(best.block,) if best.block > 1 else settings.blocks,
        contexts=best.contexts,
    )
    return chosen, {"chosen": asdict(best), "candidates": [asdict(item) for item in judged]}


def _rate(candidate: Candidate) -> float:
    return candidate.tokens_per_s


def _buckets(source: Source) -> tuple[int, ...]:
    """Candidates for context buckets: all positions, and halves of them down to 64."""
    sizes = [source.manifest.max_position]
    while sizes[-1] // 2 >= 64:
        sizes.append(sizes[-1] // 2)
    return tuple(sorted(sizes))


def _candidates(
    draft: Bundle, settings: ExportSettings, ids: np.ndarray, progress: Callable[[str], None]
) -> list[Candidate]:
    """Measures and predicts every block size of a draft."""
    plan = plan_bundle(draft, settings.target, settings.mode, tokens_per_nfe=1.0)
    engines = open_engines(draft, "onnxruntime")
    found = []
    try:
        for block in _blocks(draft):
            nats = evaluate_ids(
                draft.manifest,
                engines,
                ids,
                block_size=_asked(block),
                relative_half_width=0.001,
                max_samples=BOUND_SAMPLES,
            ).nats_per_token
            tokens = _tokens_per_nfe(draft, engines, block)
            contexts, rate = _best_buckets(draft, plan, block, tokens)
            progress(
                f"auto: {settings.precision}, block {block}: {nats:.3f} nats per token, "
                f"{tokens:.2f} tokens per run, {rate:,.0f} tokens/s predicted"
            )
            found.append(
                Candidate(
                    precision=settings.precision,
                    block=block,
                    contexts=contexts,
                    nats_per_token=nats,
                    loss_percent=0.0,
                    tokens_per_nfe=tokens,
                    tokens_per_s=rate,
                    memory_mib=plan.memory.total,
                    fits=plan.memory.fits,
                )
            )
    finally:
        engines.close()
    return found


def _blocks(draft: Bundle) -> list[int]:
    """Block sizes that decode a text with a cache: the whole canvas is for infilling."""
    specs = draft.manifest.graphs
    if draft.manifest.model.get("causal"):
        return [min(spec.block for spec in specs)]
    cached = {spec.block for spec in specs if spec.context >= spec.block}
    return sorted(cached or {spec.block for spec in specs})


def _asked(block: int) -> int | None:
    """A block size as settings take it; None for token by token, which has none."""
    return block if block > 1 else None


def _tokens_per_nfe(draft: Bundle, engines: EngineSet, block: int) -> float:
    """Tokens per graph run, by decoding with the bundle's own settings."""
    manifest = draft.manifest
    settings = decoding_settings(manifest, {"block_size": _asked(block)})
    tokens = runs = 0
    for index in range(SAMPLES):
        result = generate(
            manifest,
            engines,
            NumpyOps(),
            Request(
                prompt_ids=(manifest.eos_token_id,),
                max_tokens=min(SAMPLE_TOKENS, manifest.max_position - 1),
                seed=0,
                sample_index=index,
                settings=settings,
                # A text that ends early would measure its end, not the decoding.
                banned_ids=(manifest.eos_token_id,),
            ),
        )
        tokens += len(result.new_token_ids)
        runs += result.nfe
    return tokens / runs


def _best_buckets(
    draft: Bundle, plan: Plan, block: int, tokens_per_nfe: float
) -> tuple[tuple[int, ...], float]:
    """The fewest context buckets that decode about as fast as all, and their tokens/s.

    The largest stays; smaller ones are added while one makes a text of the model's full length
    faster by WORTH.
    """
    times = {
        context: part.step_ms + part.outside_ms
        for (_, size, context), part in plan.graphs.items()
        if size == block
    }
    kept = [max(times)]
    rate = _text_rate(draft, kept, times, block, tokens_per_nfe)
    while True:
        trials = [
            (_text_rate(draft, [*kept, size], times, block, tokens_per_nfe), size)
            for size in times
            if size not in kept
        ]
        faster = max(trials, default=(0.0, 0))
        if faster[0] < rate * (1 + WORTH):
            return tuple(sorted(kept)), rate
        rate, size = faster
        kept.append(size)


def _text_rate(
    draft: Bundle, kept: Sequence[int], times: dict[int, float], block: int, tokens_per_nfe: float
) -> float:
    """Tokens/s over a text as long as the model's positions, with these context buckets."""
    total = 0.0
    starts = range(0, max(1, draft.manifest.max_position - block + 1), block)
    for start in starts:
        holding = [size for size in kept if size >= start]
        total += times[min(holding, default=max(kept))]
    return 1e3 * tokens_per_nfe * len(starts) / total


def _judge(
    candidates: list[Candidate], settings: ExportSettings, max_loss_percent: float
) -> list[Candidate]:
    """Holds every candidate to the budgets."""
    best = min(item.nats_per_token for item in candidates)
    limit = settings.max_memory_mib
    judged = []
    for item in candidates:
        loss = 100 * (item.nats_per_token / best - 1)
        fits = item.fits and loss <= max_loss_percent
        fits = fits and (limit is None or item.memory_mib <= limit)
        judged.append(replace(item, loss_percent=loss, fits=fits))
    return judged


def _nothing_fits(
    judged: list[Candidate], settings: ExportSettings, max_loss_percent: float
) -> ConfigError:
    place = find_target(settings.target)
    smallest = min(item.memory_mib for item in judged)
    least = min(item.loss_percent for item in judged)
    return ConfigError(
        f"--auto found nothing that fits {place.name} within its budgets: the smallest candidate "
        f"needs {smallest:,.0f} MiB, the best loses {least:.2f} % of the allowed "
        f"{max_loss_percent:g} %; raise --max-memory or --max-loss, or give more --block sizes"
    )
