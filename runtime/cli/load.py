"""Opens what the commands run: bundle, tokenizer and engine, and the rule that it decodes by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..engines import BuildSettings
from ..families.table import with_rule
from ..pipeline import Pipeline
from .common import note
from .decoding import chosen_rule_note
from .progress import ProgressLine


def load_pipeline(
    command: str,
    bundle: str | Path | None,
    *,
    engine: str,
    threads: int | None,
    expect_sha256: str | None,
    verbose: int,
    weak_types: bool = False,
    say: Callable[[str], None] | None = None,
) -> Pipeline:
    """Loads a bundle for a command; `say` gets what there is to say, stderr if it is None."""
    line = ProgressLine()

    def say_here(text: str) -> None:
        line.wipe()
        note(command, text)

    try:
        pipeline = Pipeline.load(
            bundle,
            engine=engine,
            threads=threads,
            expect_sha256=expect_sha256,
            build=BuildSettings(weakly_typed=weak_types),
            note=say or say_here,
            report=line.show_share,
        )
    finally:
        line.wipe()
    if verbose:
        engines = pipeline.engines
        note(command, f"{pipeline.bundle.path} on {engines.name}, threads {engines.threads}")
        note(command, f"engine {engines.name}: {engines.reason}")
    return pipeline


def with_chosen_rule(
    command: str, pipeline: Pipeline, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Gives settings checked, with the rule that an option chooses; says on stderr if one does."""
    own = pipeline.settings()
    found = with_rule(settings, own, pipeline.manifest.family)
    if line := chosen_rule_note(settings, own, pipeline.settings(**found)):
        note(command, line)
    return found
