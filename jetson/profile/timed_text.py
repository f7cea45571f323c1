"""Generates one text with the clocks on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from ...runtime.generate import GraphRun
from ...runtime.pipeline import Pipeline
from .run_record import TextRun, text_run


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
