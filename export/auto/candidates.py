"""What `--auto` chooses from: block sizes of one precision, measured here, predicted for a target.

Knows no family: it decodes and scores as the device does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...calibration.canvases.texts import find_text, read_texts
from ...jetson.forecast.forecast import Forecast, forecast_bundle
from ...jetson.forecast.memory import MemoryForecast
from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.manifest import GraphSpec, cache_role
from ...runtime.cli.progress import bar
from ...runtime.engines import open_engines
from ...runtime.families.base import LoadedModel, Request
from ...runtime.families.table import load_model
from ...runtime.generate import generate
from ...runtime.measure.evaluate import evaluate_ids
from ..pack import make_draft
from ..settings import ExportSettings
from ..source import Traceable, load_source
from .offers import Offer, memory_of, offers_of, shipped

SAMPLES, SAMPLE_TOKENS = 2, 128
"""Texts decoded per block size, and their length at most."""
SCORED_TOKENS = 2048
"""Held-out tokens that a candidate is scored on, where there is a text."""
BOUND_SAMPLES = 8
"""Monte-Carlo draws per window; equal seeds give all candidates equal masks where blocks agree."""


WORTH = 0.02
"""A further context bucket must make decoding this much faster: each is one more profile to
build."""


def best_buckets(
    offered: Sequence[int], rate_of: Callable[[Sequence[int]], float]
) -> tuple[tuple[int, ...], float]:
    """Returns the fewest context buckets that decode about as fast as all, and their tokens/s.

    The largest stays; smaller ones are added while one makes a text faster by WORTH.

    Args:
        offered: Buckets to choose from; empty: there is no cache.
        rate_of: Gives the tokens/s with some of them.
    """
    kept = [max(offered)] if offered else []
    rate = rate_of(kept)
    while True:
        trials = [(rate_of([*kept, size]), size) for size in offered if size not in kept]
        faster = max(trials, default=(0.0, 0))
        if faster[0] < rate * (1 + WORTH):
            return tuple(sorted(kept)), rate
        rate, size = faster
        kept.append(size)


def text_rate(forecast: Forecast, runs: Iterable[tuple[GraphSpec, float]], positions: int) -> float:
    """Predicts tokens/s over a text of so many positions that takes these runs."""
    total = 0.0
    for spec, count in runs:
        part = forecast.graphs[spec.key]
        total += count * (part.step_ms + part.outside_ms)
    return 1e3 * positions / total


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One choice, with what is measured and predicted for it."""

    precision: str
    block: int | None
    """That text was decoded and scored with; None for token by token."""
    blocks: tuple[int | str, ...]
    """That the bundle is made with."""
    contexts: tuple[int, ...]
    perplexity: float
    """Bound on real text."""
    loss_percent: float
    """How much worse than the best candidate's."""
    tokens_per_nfe: float
    """Measured by decoding."""
    tokens_per_s: float
    """Predicted, over a text as long as the model's positions."""
    memory_mib: float
    """Predicted, of the shapes that this candidate ships."""
    fits: bool
    """Whether memory and quality are within their budgets."""

    @property
    def way(self) -> str:
        """Names in messages how text is decoded."""
        return "token by token" if self.block is None else f"block {self.block}"


def _buckets(source: Traceable) -> tuple[int, ...]:
    """Candidates for context buckets: all positions, and halves of them down to 64."""
    sizes = [source.manifest.max_position]
    while sizes[-1] // 2 >= 64:
        sizes.append(sizes[-1] // 2)
    return tuple(sorted(sizes))


def find_candidates(
    checkpoint_path: Path, settings: ExportSettings, progress: Callable[[str], None]
) -> list[Candidate]:
    """Makes one precision; measures and predicts every block size of it."""
    source = load_source(checkpoint_path, settings)
    cut = not settings.contexts
    cached = any(cache_role(tensor.role) for graph in source.graphs for tensor in graph.inputs)
    if cut and cached:
        settings = replace(settings, contexts=_buckets(source))
    ids = _held_out(source, settings)
    found = []
    with tempfile.TemporaryDirectory(prefix="dlm-auto-") as name:
        draft = make_draft(source, settings, Path(name), progress, candidate=True).bundle
        forecast = forecast_bundle(draft, settings.target, settings.mode, tokens_per_nfe=1.0)
        engines = open_engines(draft, "onnxruntime")
        model = load_model(draft.manifest, engines)
        try:
            offers = _affordable(draft, source, settings, cut)
            for number, offer in enumerate(offers, 1):
                progress(f"auto: scoring {settings.precision}, {number} of {len(offers)}")
                found.append(_candidate(draft, source, settings, forecast, model, ids, offer))
                item = found[-1]
                progress(
                    f"auto: {item.precision}, {item.way}: perplexity "
                    f"{item.perplexity:.2f}, {item.tokens_per_nfe:.2f} tokens per run, "
                    f"{item.tokens_per_s:,.0f} tokens/s and {item.memory_mib:,.0f} MiB predicted"
                )
        finally:
            engines.close()
    return found


def _held_out(source: Traceable, settings: ExportSettings) -> np.ndarray:
    """Text to score on: what calibration holds out where there is any, else the parity text."""
    found = find_text(settings.calibration_data, source.config)
    if found is None:
        return source.text(settings.data)
    texts = read_texts(found, settings.data, source.tokenizer, source.manifest.framing, source.chat)
    return texts.stream(SCORED_TOKENS)


def _affordable(
    draft: Bundle, source: Traceable, settings: ExportSettings, cut: bool
) -> list[Offer]:
    """Per block, the most capable offer that fits the memory; the smallest one if none does.

    A shorter context or canvas loses what texts can see, so it is offered only where a longer one
    does not fit.
    """
    best: dict[int | None, Offer] = {}
    done: set[int | None] = set()
    for offer in offers_of(draft, settings, cut=cut):
        # All canvases are one choice: how many of them there is room for.
        key = offer.block if offer.contexts else 0
        if key in done:
            continue
        best[key] = offer
        contexts = offer.contexts[-1:]
        memory = memory_of(draft, source.graphs, settings.target, offer.blocks, contexts)
        if _fits(memory, settings):
            done.add(key)
    return list(best.values())


def _fits(memory: MemoryForecast, settings: ExportSettings) -> bool:
    limit = settings.max_memory_mib
    return memory.fits and (limit is None or memory.total <= limit)


def _candidate(
    draft: Bundle,
    source: Traceable,
    settings: ExportSettings,
    forecast: Forecast,
    model: LoadedModel,
    ids: np.ndarray,
    offer: Offer,
) -> Candidate:
    manifest = draft.manifest
    seen = offer.contexts[-1] if offer.contexts else None
    with bar() as show:
        result = evaluate_ids(
            model,
            ids,
            context=seen if seen is not None and seen < manifest.max_position else None,
            block_size=None if model.family.exact else offer.block,
            relative_half_width=0.001,
            max_samples=BOUND_SAMPLES,
            progress=show,
        )
    tokens = _tokens_per_nfe(model, offer.block)

    def rate_of(kept: Sequence[int]) -> float:
        specs = shipped(draft, source.graphs, offer.blocks, kept).manifest.graphs
        runs = model.family.runs(
            manifest,
            specs,
            block=offer.block,
            positions=manifest.max_position,
            tokens_per_run=tokens,
        )
        return text_rate(forecast, runs, manifest.max_position)

    contexts, rate = best_buckets(offer.contexts, rate_of)
    memory = memory_of(draft, source.graphs, settings.target, offer.blocks, contexts)
    return Candidate(
        precision=manifest.precision,
        block=offer.block,
        blocks=offer.blocks,
        contexts=contexts,
        perplexity=result.perplexity,
        loss_percent=0.0,
        tokens_per_nfe=tokens,
        tokens_per_s=rate,
        memory_mib=memory.total,
        fits=_fits(memory, settings),
    )


def _tokens_per_nfe(model: LoadedModel, block: int | None) -> float:
    """Tokens per graph run, by decoding with the bundle's own settings."""
    manifest = model.manifest
    settings = model.settings({"block_size": block})
    tokens = runs = 0
    for index in range(SAMPLES):
        result = generate(
            model,
            Request(
                prompt_ids=manifest.framing.prompt(()),
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
