"""The bundle's default temperature, chosen by what the model writes.

Small models that are decoded greedily fall into repeating themselves, which looks like a broken
export. So a few texts are written at temperature 0; where their tokens repeat, and those drawn at
`TEMPERATURE` do not, drawing becomes the bundle's default. Knows no family: it decodes as the
device does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ...runtime.bundle.bundle import Bundle
from ...runtime.engines import open_engines
from ...runtime.families.table import load_model
from ...runtime.measure.word_figures import repetition
from ...runtime.pipeline import Pipeline
from ...runtime.text.tokenizer import Tokenizer

GIVEN = (1, 8, 16)
"""Tokens of real text, start token included, that each text goes on from."""
NUM_TOKENS = 48
"""New tokens of a text at most."""
MOST_REPETITION = 0.2
"""Share of repeated runs of 4 tokens above which texts count as repeating themselves."""
TEMPERATURE = 0.8


def default_decoding(
    draft: Bundle, tokenizer: Tokenizer, ids: np.ndarray, progress: Callable[[str], None]
) -> tuple[Bundle, dict[str, Any]]:
    """Decodes a draft and gives its manifest the temperature that suits it.

    Args:
        ids: (L,) real text whose beginnings are continued, start token first.

    Returns:
        The draft, and what was measured, for the report: `repetition` by temperature.
    """
    engines = open_engines(draft, "onnxruntime")
    try:
        pipeline = Pipeline(draft, load_model(draft.manifest, engines), tokenizer)
        positions = draft.manifest.max_position
        given = [ids[:count].tolist() for count in GIVEN if count < max(2, positions // 2)]

        def written(temperature: float) -> float | None:
            texts = [
                pipeline.continue_ids(
                    prompt,
                    max_tokens=min(NUM_TOKENS, positions - len(prompt)),
                    temperature=temperature,
                ).result()
                for prompt in given
            ]
            return repetition(text.token_ids for text in texts)

        found = {"0": written(0.0)}
        if found["0"] is None or found["0"] <= MOST_REPETITION:
            return draft, {"repetition": found}
        drawn = found[f"{TEMPERATURE:g}"] = written(TEMPERATURE)
    finally:
        engines.close()
    if drawn is None or drawn > MOST_REPETITION:
        return draft, {"repetition": found}
    progress(
        f"default temperature {TEMPERATURE:g}: at 0 the texts repeat themselves "
        f"({found['0']:.0%} of their runs of 4 tokens came before, {drawn:.0%} when drawn); "
        "--temperature chooses another"
    )
    decoding = {**draft.manifest.decoding, "temperature": TEMPERATURE}
    manifest = replace(draft.manifest, decoding=decoding)
    return replace(draft, manifest=manifest), {"repetition": found}
