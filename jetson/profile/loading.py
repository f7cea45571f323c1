"""Opens a bundle part by part, and notes what each part adds to memory and time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...runtime.bundle.bundle import default_bundle_path, open_bundle
from ...runtime.engines import open_engines
from ...runtime.engines.base import EngineSet
from ...runtime.families.table import load_model
from ...runtime.pipeline import Pipeline
from ...runtime.text.tokenizer import Tokenizer
from ..sensors.memory import DEVICE_USED, engine_memory, process_memory


class MemoryNotes:
    """What was resident after each part; the first is all that was there before."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.parts: list[dict[str, Any]] = []
        self.engines: EngineSet | None = None
        """Once they are open; where they have a device, its memory is noted as well."""

    def add(self, name: str, seconds: float | None) -> None:
        """Notes what is in use now, and how long the part took; nothing without a profiler."""
        now = process_memory(self._root)
        if now is None:
            return
        before = self.parts[-1]["resident_mib"] if self.parts else 0.0
        device = {} if self.engines is None else engine_memory(self.engines)
        self.parts.append(
            {
                "name": name,
                "mib": round(now.resident - before, 2),
                "resident_mib": round(now.resident, 2),
                "anonymous_mib": round(now.anonymous, 2),
                "file_mib": round(now.file, 2),
                "device_used_mib": round(device[DEVICE_USED], 2) if DEVICE_USED in device else None,
                "seconds": None if seconds is None else round(seconds, 4),
            }
        )


def load_by_parts(
    path: Path | None,
    notes: MemoryNotes,
    *,
    engine: str,
    threads: int | None,
    expect_sha256: str | None,
    progress: Callable[[str, int, int], None],
) -> Pipeline:
    """Opens a bundle (None: the one that ships); raises what `Pipeline.load` does.

    Every graph file is made executable here, so that the first text only fills buffers. `progress`
    is called while a plan is built, which takes minutes.
    """
    clock = time.perf_counter
    notes.add("interpreter and packages", None)
    begin = clock()
    bundle = open_bundle(path or default_bundle_path(), expect_sha256=expect_sha256)
    tokenizer = Tokenizer.load(bundle.member("tokenizer.json"))
    notes.add("bundle and tokenizer", clock() - begin)
    begin = clock()
    engines = open_engines(
        bundle,
        engine,
        threads,
        report=lambda fraction, phase: progress("building a plan", int(100 * fraction), 100),
    )
    notes.engines = engines
    notes.add("engine's library", clock() - begin)
    begin = clock()
    for spec in {spec.file: spec for spec in reversed(engines.specs)}.values():
        engines.engine(spec)
    notes.add("weights and session", clock() - begin)
    return Pipeline(bundle, load_model(bundle.manifest, engines), tokenizer)
