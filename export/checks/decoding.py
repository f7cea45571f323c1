"""The bundle's default temperature and rule, chosen by what the model writes.

Small models that are decoded greedily fall into repeating themselves, which looks like a broken
export. So a few texts are written at temperature 0; where their tokens repeat, texts are drawn at
`TEMPERATURE`, by the bundle's rule and then by the family's others. The first way whose texts do
not repeat becomes the default. Knows no family: it decodes as the device does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ...runtime.bundle.bundle import Bundle
from ...runtime.decoding import DecodingRule
from ...runtime.engines import open_engines
from ...runtime.families.table import decoding_settings, load_model, rules_of
from ...runtime.measure.text_quality import repetition
from ...runtime.pipeline import Pipeline
from ...runtime.text.tokenizer import Tokenizer

GIVEN = (1, 8, 16)
"""Tokens of real text, start token included, that each text goes on from."""
NUM_TOKENS = 48
"""New tokens of a text at most."""
MOST_REPETITION = 0.2
"""Share of runs of 4 tokens that came before, above which a text counts as repeating itself."""
TEMPERATURE = 0.8


def default_decoding(
    draft: Bundle, tokenizer: Tokenizer, ids: np.ndarray, progress: Callable[[str], None]
) -> tuple[Bundle, dict[str, Any]]:
    """Decodes a draft and gives its manifest the temperature, and perhaps the rule, that suit it.

    Args:
        ids: (L,) real text whose beginnings are continued, start token first.

    Returns:
        The draft, and what was measured, for the report: `repetition` by rule and temperature.
    """
    manifest = draft.manifest
    own = decoding_settings(manifest, None).name
    engines = open_engines(draft, "onnxruntime")
    found: dict[str, float | None] = {}
    try:
        pipeline = Pipeline(draft, load_model(manifest, engines), tokenizer)
        given = [ids[:n].tolist() for n in GIVEN if n < max(2, manifest.max_position // 2)]
        for way in _ways(own, rules_of(manifest.family)):
            texts = [
                pipeline.continue_ids(
                    prompt, max_tokens=min(NUM_TOKENS, manifest.max_position - len(prompt)), **way
                ).result()
                for prompt in given
            ]
            share = repetition(text.token_ids for text in texts)
            found[f"{way['rule']} at {way['temperature']:g}"] = share
            if share is None or share <= MOST_REPETITION:
                break
        else:  # every way repeats itself: a choice among them would mean nothing
            return draft, {"repetition": found}
    finally:
        engines.close()
    if share is None or len(found) == 1:
        return draft, {"repetition": found}
    progress(
        f"default decoding: rule {way['rule']} at temperature {way['temperature']:g}, where "
        f"{share:.0%} of the texts' runs of 4 tokens came before; "
        f"{', '.join(f'{name} {value:.0%}' for name, value in [*found.items()][:-1])}; --rule and "
        "--temperature choose another"
    )
    kept = manifest.decoding if way["rule"] == own else {}
    manifest = replace(manifest, decoding={**kept, **way})
    return replace(draft, manifest=manifest), {"repetition": found}


def _ways(own: str, rules: Iterable[type[DecodingRule]]) -> Iterator[dict[str, Any]]:
    """Yields what is tried, in order: the bundle's own rule, then the family's others."""
    yield {"rule": own, "temperature": 0.0}
    others = [rule.name for rule in rules if rule.swept and rule.name != own]
    for rule in (own, *others):
        yield {"rule": rule, "temperature": TEMPERATURE}
