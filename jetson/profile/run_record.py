"""One text's clocks: where its time went, stage by stage, and what its runs were for.

| stage | is |
|---|---|
| tokenise | text to ids, before the first run |
| prefill | all of the runs that put known text into the cache |
| engine | graph runs that denoise or commit |
| sampling | statistics, draws, selection and commit into the canvas |
| host | inputs, cache writes, the loop itself |
| detokenise | ids to text |

They add up to the text's whole time. On an engine that only enqueues, what it takes shows up in
whatever waits for it first; the report says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ...runtime.bundle.manifest import GraphKey
from ...runtime.families.base import HEAD_PHASE
from ...runtime.generate import GraphRun
from ...runtime.pipeline import Pipeline
from ...runtime.text_generation import TextResult

STAGES = ("tokenise", "prefill", "engine", "sampling", "host", "detokenise")
NO_TEXT = ("prefill", "commit")
"""Phases that make no token."""
ADVANCE = "advance"
"""The phase that does both, over two blocks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRun:
    """One text that was generated and timed."""

    prompt: int
    """Number of the prompt."""
    sample_index: int
    num_prompt_tokens: int
    num_tokens: int
    """New ones."""
    nfe: int
    """Graph runs, prefill and commits among them; runs of a head are not counted separately."""
    num_blocks: int
    """Blocks that new text was put into; 0 for a rule without blocks."""
    first_s: float
    """From the call to the first committed token."""
    first_block_s: float
    """From the call to the end of the first block; the whole text where it has but one."""
    total_s: float
    stages: Mapping[str, float]
    """Seconds by STAGES."""
    steps: tuple[GraphRun, ...]
    finish_reason: str
    text: str

    @property
    def text_nfe(self) -> int:
        """Runs that made text: prefill left out, commits of finished blocks counted."""
        return sum(step.phase != "prefill" for step in self.steps)

    @property
    def tokens_per_s(self) -> float:
        """New tokens per second of the whole text."""
        return self.num_tokens / self.total_s if self.total_s else 0.0

    def to_json(self) -> dict[str, Any]:
        """Returns plain data; steps are rows of (phase, shape, milliseconds)."""
        return {
            "prompt": self.prompt,
            "sample_index": self.sample_index,
            "num_prompt_tokens": self.num_prompt_tokens,
            "num_tokens": self.num_tokens,
            "nfe": self.nfe,
            "num_blocks": self.num_blocks,
            "first_s": round(self.first_s, 6),
            "first_block_s": round(self.first_block_s, 6),
            "total_s": round(self.total_s, 6),
            "tokens_per_s": round(self.tokens_per_s, 3),
            "tokens_per_nfe": round(self.num_tokens / self.nfe, 4) if self.nfe else 0.0,
            "stages": {name: round(value, 6) for name, value in self.stages.items()},
            "finish_reason": self.finish_reason,
            "steps": [
                [run.phase, run.spec.label, round(run.engine * 1e3, 4)] for run in self.steps
            ],
        }


def text_run(
    result: TextResult,
    steps: Sequence[GraphRun],
    *,
    prompt: int,
    num_prompt_tokens: int,
    tokenise_s: float,
    begin: float,
) -> TextRun:
    """Splits a finished text into its runs.

    Args:
        result: what was generated; `prepare` (making engines ready) is left out of its time.
        begin: `time.perf_counter()` at the call.
    """
    stages: dict[str, float] = dict.fromkeys(STAGES, 0.0)
    stages["tokenise"] = tokenise_s
    stages["detokenise"] = max(0.0, result.seconds["text"] - tokenise_s)
    for run in steps:
        if run.phase == "prefill":
            stages["prefill"] += run.feed + run.engine + run.update
            continue
        stages["engine"] += run.engine
        stages["host"] += run.feed
        stages["host" if run.phase in NO_TEXT else "sampling"] += run.update
    stages["host"] += result.seconds["host"]
    total_s = result.seconds["total"] - result.seconds["prepare"]
    block = next((run.block for run in steps if run.block), 0)
    before = num_prompt_tokens % block if block else 0
    num_tokens = len(result.token_ids)
    return TextRun(
        prompt=prompt,
        sample_index=result.sample_index,
        num_prompt_tokens=num_prompt_tokens,
        num_tokens=num_tokens,
        nfe=result.nfe,
        num_blocks=-(-(before + num_tokens) // block) if block else 0,
        first_s=_until(steps, 1) - begin if num_tokens else 0.0,
        first_block_s=_until(steps, min(num_tokens, block - before)) - begin if block else total_s,
        total_s=total_s,
        stages=stages,
        steps=tuple(steps),
        finish_reason=result.finish_reason,
        text=result.text,
    )


def timed_text(
    pipeline: Pipeline,
    prompt: str,
    *,
    number: int = 0,
    seed: int = 0,
    sample_index: int = 0,
    max_tokens: int | None = None,
    settings: Mapping[str, Any] | None = None,
    settle: Callable[[], None] | None = None,
) -> TextRun:
    """Generates a text with every graph run of it observed.

    Args:
        pipeline: open; its observers are replaced.
        settle: see `Generation`; None: nothing is waited for.
    """
    steps: list[GraphRun] = []
    pipeline.observer, pipeline.settle = steps.append, settle
    begin = time.perf_counter()
    generation = pipeline.generate(
        prompt, max_tokens=max_tokens, seed=seed, sample_index=sample_index, **(settings or {})
    )
    for _ in generation:
        pass
    pipeline.observer = pipeline.settle = None
    return text_run(
        generation.so_far(),
        steps,
        prompt=number,
        num_prompt_tokens=len(generation.given_ids),
        tokenise_s=generation.tokenise_seconds,
        begin=begin,
    )


def _until(steps: Sequence[GraphRun], num_tokens: int) -> float:
    """Returns when the run ended that made so many tokens; the last one, if none did."""
    made, end = 0, 0.0
    for run in steps:
        made += run.num_committed
        end = run.begin + run.prepare + run.feed + run.engine + run.update
        if made >= num_tokens:
            break
    return end


def spread(values: Sequence[float], unit: str) -> dict[str, Any]:
    """Returns median, quartiles (`low`, `high`), count and unit of a figure; of nothing, zeros."""
    ordered = sorted(values) or [0.0]
    return {
        "median": round(median(ordered), 6),
        "low": round(quantile(ordered, 0.25), 6),
        "high": round(quantile(ordered, 0.75), 6),
        "count": len(values),
        "unit": unit,
    }


def quantile(ordered: Sequence[float], share: float) -> float:
    """Returns a quantile of ascending values, by linear interpolation."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def summarise(runs: Sequence[TextRun]) -> dict[str, Any]:
    """Returns every figure of a set of texts, as spreads by name."""
    steps = [s for run in runs for s in run.steps if s.phase not in (*NO_TEXT, ADVANCE, HEAD_PHASE)]
    blockwise = [run for run in runs if run.num_blocks]
    figures = {
        "tokens_per_s": spread([run.tokens_per_s for run in runs], "tokens/s"),
        "first_token_ms": spread([run.first_s * 1e3 for run in runs if run.num_tokens], "ms"),
        "first_block_ms": spread([run.first_block_s * 1e3 for run in blockwise], "ms"),
        "ms_per_nfe": spread([run.total_s * 1e3 / run.nfe for run in runs if run.nfe], "ms"),
        "engine_ms_per_step": spread([step.engine * 1e3 for step in steps], "ms"),
        "nfe_per_block": spread([run.text_nfe / run.num_blocks for run in blockwise], "runs"),
        "tokens_per_nfe": spread([r.num_tokens / r.nfe for r in runs if r.nfe], "tokens"),
    }
    stages = {name: spread([run.stages[name] * 1e3 for run in runs], "ms") for name in STAGES}
    return {
        "figures": figures,
        "stages_ms": stages,
        "stage_share": _shares(runs),
        "phases": _phases(runs),
    }


def _shares(runs: Sequence[TextRun]) -> dict[str, float]:
    total = sum(run.total_s for run in runs)
    return {
        name: round(sum(run.stages[name] for run in runs) / total, 4) if total else 0.0
        for name in STAGES
    }


def _phases(runs: Sequence[TextRun]) -> list[dict[str, Any]]:
    """Returns the engine's time per kind of run and shape."""
    times: dict[tuple[str, GraphKey], list[float]] = {}
    for run in runs:
        for step in run.steps:
            times.setdefault((step.phase, step.spec.key), []).append(step.engine * 1e3)
    return [
        {
            "phase": phase,
            "graph": graph,
            "dims": dict(dims),
            **spread(times[phase, (graph, dims)], "ms"),
        }
        for phase, (graph, dims) in sorted(times)
    ]
