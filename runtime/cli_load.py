"""Opens what the commands run: bundle, tokenizer and engine, with a line while a plan is built."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TextIO

from .cli_common import note
from .engines import BuildSettings
from .pipeline import Pipeline

_WIDTH = 24


class BuildLine:
    """One line on a terminal that shows how far a build is; nothing elsewhere."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._shown = ""

    def show(self, fraction: float, phase: str) -> None:
        """Redraws the line if it would look different."""
        filled = round(min(max(fraction, 0.0), 1.0) * _WIDTH)
        bar = "#" * filled + "." * (_WIDTH - filled)
        line = f"building [{bar}] {fraction:4.0%} {phase[:32]:<32}"
        if self._out.isatty() and line != self._shown:
            self._out.write(f"\r{line}")
            self._out.flush()
            self._shown = line

    def end(self) -> None:
        """Removes the line."""
        if self._shown:
            self._out.write("\r" + " " * len(self._shown) + "\r")
            self._out.flush()
            self._shown = ""


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
    line = BuildLine(sys.stderr)

    def say(text: str) -> None:
        line.end()
        note(command, text)

    try:
        pipeline = Pipeline.load(
            bundle,
            engine=engine,
            threads=threads,
            expect_sha256=expect_sha256,
            build=BuildSettings(weakly_typed=weak_types),
            note=say,
            report=line.show,
        )
    finally:
        line.end()
    if verbose:
        engines = pipeline.engines
        note(command, f"{pipeline.bundle.path} on {engines.name}, threads {engines.threads}")
        note(command, f"engine {engines.name}: {engines.reason}")
    return pipeline
