"""Opens what the commands run: bundle, tokenizer and engine, with a line while a plan is built."""

from __future__ import annotations

from pathlib import Path

from ..engines import BuildSettings
from ..pipeline import Pipeline
from .common import note
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
) -> Pipeline:
    """Loads a bundle for a command, and says what there is to say on stderr.

    Raises:
        DlmError: As `Pipeline.load`.
    """
    line = ProgressLine()

    def say(text: str) -> None:
        line.wipe()
        note(command, text)

    try:
        pipeline = Pipeline.load(
            bundle,
            engine=engine,
            threads=threads,
            expect_sha256=expect_sha256,
            build=BuildSettings(weakly_typed=weak_types),
            note=say,
            report=line.show_share,
        )
    finally:
        line.wipe()
    if verbose:
        engines = pipeline.engines
        note(command, f"{pipeline.bundle.path} on {engines.name}, threads {engines.threads}")
        note(command, f"engine {engines.name}: {engines.reason}")
    return pipeline
