"""Measures a bundle on this machine: time by stage, memory by part, power, layers.

Builds one plain record as it goes, so that what was measured before an interruption is kept. Knows
no plot and no option parser; predictions and sweeps are added by `prediction.py` and `sweep.py`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from math import inf
from pathlib import Path
from typing import Any

from ...runtime.bundle.bundle import bundle_facts
from ...runtime.cli.load import with_chosen_rule
from ...runtime.engines.base import Accountable, LayerClocks
from ...runtime.errors import ConfigError
from ...runtime.pipeline import Pipeline
from ..forecast.forecast import read_graphs
from ..sensors.board import read_machine
from ..sensors.memory import engine_memory, process_memory, reset_peak
from ..sensors.sampler import DEFAULT_RATE, Sampler
from ..sensors.sysfs import ROOT
from ..sensors.throttling import crowding, foreign, throttling, waited_seconds
from .loading import MemoryNotes, load_by_parts
from .measured import allocator_peaks, layer_record, parameter_names, run_energy
from .run_record import TextRun, summarise, timed_text

SCHEMA = 1
IDLE_SECONDS = 1.0
"""How long the board is watched doing nothing, where there is a power rail."""
LAYER_TEXTS = 1


DEFAULT_PROMPTS = (
    "",
    "Once upon a time",
    "The little dog was very happy because",
    "One day, a girl named Sue went to the park with her mom. She saw a big red ball under a tree "
    "and she wanted to play with it. But the ball was not hers, so she asked her mom what to do.",
)
"""Unconditional, short, middling, and one of some fifty tokens, so that prefill has work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileOptions:
    """What to measure."""

    bundle: Path | None = None
    """None: the model that ships with the package."""
    engine: str = "auto"
    threads: int | None = None
    expect_sha256: str | None = None
    prompts: tuple[str, ...] | None = None
    """None: those of DEFAULT_PROMPTS that the bundle has room for."""
    runs: int = 3
    """Texts per prompt."""
    warm_up: int = 1
    """Texts that are not counted, before the others."""
    max_tokens: int | None = None
    """New tokens at most per text; None: the runtime's own limit."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of the bundle's decoding settings."""
    seed: int = 0
    sensors: str = "auto"
    rate: float = DEFAULT_RATE
    """Readings per second."""
    layers: bool = True
    """Time single layers, in a run of its own."""


class Profiler:
    """One measurement; `record` is what is known so far."""

    def __init__(
        self,
        options: ProfileOptions,
        *,
        root: Path = ROOT,
        progress: Callable[[str, int, int], None] = lambda what, done, planned: None,
    ) -> None:
        """Finds the sensors; raises what `Sampler` does.

        Args:
            progress: called with (what is being done, parts done, parts planned).
        """
        self._options, self._root, self._progress = options, root, progress
        self.sampler = Sampler(options.sensors, options.rate, root=root)
        self.zero = time.perf_counter()
        self.runs: list[TextRun] = []
        self.settled_runs: list[TextRun] = []
        """Texts whose stages were waited for one by one; none where runs are synchronous."""
        self.settings: Mapping[str, Any] = {}
        """Overrides of the bundle's decoding settings; known once the bundle is open."""
        self._prompts: tuple[str, ...] = options.prompts or ()
        self._settle: Callable[[], None] | None = None
        self._spans: list[dict[str, Any]] = []
        self._notes = MemoryNotes(root)
        self.pipeline: Pipeline | None = None
        self.record: dict[str, Any] = {
            "kind": "dlm-profile",
            "schema": SCHEMA,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "complete": False,
            "machine": read_machine(root).to_json(),
        }

    def measure(self) -> None:
        """Loads, warms up, generates, times layers; leaves everything in `record`."""
        self.sampler.start()
        if self.sampler.has_power:
            with self.span("idle"):
                time.sleep(IDLE_SECONDS)
        with self.span("load"):
            self.pipeline = self._load()
        with self.span("warm-up"):
            self._warm_up(self.pipeline)
        with self.span("runs"):
            self._generate(self.pipeline)
        # A span of its own: joules of the runs are those of the texts that count.
        device = getattr(self.pipeline.engines, "device", None)
        if device is not None:
            with self.span("stages"):
                self._generate_settled(self.pipeline, device)
        if self._options.layers and isinstance(self.pipeline.engines, LayerClocks):
            with self.span("layers"):
                self._time_layers(self.pipeline, self.pipeline.engines)

    def finish(self, *, complete: bool) -> dict[str, Any]:
        """Stops the sensors and returns the record, whatever is in it."""
        self.sampler.stop()
        series = self.sampler.series
        self.record["complete"] = complete
        self.record["spans"] = self._spans
        self.record["memory"] = {
            **self.record.get("memory", {}),
            **allocator_peaks(series, self._until_extras()),
            "parts": self._notes.parts,
        }
        self.record["sensors"] = self.sampler.to_json(self.zero)
        self._summarise()
        window = self._window("runs")
        if window:
            self.record["sensors"]["figures"] = series.figures(*window)
            self.record["throttling"] = throttling(series, *window, root=self._root)
            waited = self.record.get("waited_for_cpu_s")
            self.record["crowding"] = crowding(waited, window[1] - window[0])
        if self.pipeline is not None:
            self.pipeline.close()
        return self.record

    def _summarise(self) -> None:
        if self.runs:
            self.record["runs"] = [run.to_json() for run in self.runs]
            self.record["summary"] = summarise(self.runs)
            self.record["stages_settled"] = bool(self.settled_runs)
            if self.settled_runs:
                settled = summarise(self.settled_runs)
                for name in ("stages_ms", "stage_share", "phases"):
                    self.record["summary"][name] = settled[name]
                engine_ms = settled["figures"]["engine_ms_per_step"]
                self.record["summary"]["figures"]["engine_ms_per_step"] = engine_ms
        self.record["energy"] = run_energy(
            self.sampler.series, self.runs, self._window("runs"), self._window("idle")
        )

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Marks a stretch of time, for the plots; an interrupted one ends where it broke off."""
        entry = {"name": name, "begin": round(time.perf_counter() - self.zero, 4)}
        self._spans.append(entry)
        try:
            yield
        finally:
            entry["end"] = round(time.perf_counter() - self.zero, 4)

    def _until_extras(self) -> float:
        """Returns when the texts that count were over: profilers and judges take memory, too."""
        extras = (span for span in self._spans if span["name"] in ("layers", "sweep"))
        return next((self.zero + span["begin"] for span in extras), inf)

    def _window(self, name: str) -> tuple[float, float] | None:
        for span in self._spans:
            if span["name"] == name and "end" in span:
                return self.zero + span["begin"], self.zero + span["end"]
        return None

    def _load(self) -> Pipeline:
        options = self._options
        pipeline = load_by_parts(
            options.bundle,
            self._notes,
            engine=options.engine,
            threads=options.threads,
            expect_sha256=options.expect_sha256,
            progress=self._progress,
        )
        self.settings = with_chosen_rule("dlm-profile", pipeline, options.settings)
        if options.prompts is None:
            self._prompts = self._fitting(pipeline, DEFAULT_PROMPTS)
        engines = pipeline.engines
        self.record["bundle"] = bundle_facts(pipeline.bundle)
        self.record["foreign"] = foreign(pipeline.manifest.target, self.record["machine"]["target"])
        self.record["engine"] = {
            "name": engines.name,
            "reason": engines.reason,
            "threads": engines.threads,
        }
        self.record["settings"] = {
            "decoding": pipeline.settings(**self.settings).to_json(),
            "seed": options.seed,
            "runs": options.runs,
            "warm_up": options.warm_up,
            "max_tokens": options.max_tokens,
            "prompts": list(self._prompts),
        }
        return pipeline

    def _fitting(self, pipeline: Pipeline, prompts: Sequence[str]) -> tuple[str, ...]:
        """Returns the prompts that fit, the empty one always; ConfigError for unfit settings."""
        pipeline.generate("", max_tokens=1, **self.settings)
        found = []
        for prompt in prompts:
            with contextlib.suppress(ConfigError):
                pipeline.generate(prompt, max_tokens=1, **self.settings)
                found.append(prompt)
        return tuple(found)

    def generate(
        self,
        pipeline: Pipeline,
        prompt: str,
        number: int,
        sample_index: int,
        settings: Mapping[str, Any] | None = None,
    ) -> TextRun:
        """Generates one text as the options say, but for these settings."""
        options = self._options
        run = timed_text(
            pipeline,
            prompt,
            number=number,
            seed=options.seed,
            sample_index=sample_index,
            max_tokens=options.max_tokens,
            settings=self.settings if settings is None else settings,
            settle=self._settle,
        )
        if pipeline is self.pipeline:
            self._note_memory(pipeline)
        return run

    def _note_memory(self, pipeline: Pipeline) -> None:
        """Puts what the engine holds now beside what the sensors say."""
        now = time.perf_counter()
        for name, value in engine_memory(pipeline.engines).items():
            self.sampler.series.add(name, "memory", "MiB", now, value)

    def _warm_up(self, pipeline: Pipeline) -> None:
        """Generates what does not count; its first text shows how much memory running takes."""
        options = self._options
        loading = process_memory(self._root)
        reset = reset_peak(self._root)
        begin = time.perf_counter()
        for number in range(options.warm_up):
            self._progress("warm-up", number, options.warm_up)
            self.generate(pipeline, self._prompts[-1], len(self._prompts) - 1, number)
        if options.warm_up:
            self._notes.add("buffers and activations", time.perf_counter() - begin)
        now = process_memory(self._root)
        if now is not None and loading is not None:
            self.record["memory"] = {
                "load_peak_mib": round(loading.peak, 2),
                "peak_mib": round(now.peak, 2),
                "peak_since_load": reset,
            }

    def _generate(self, pipeline: Pipeline) -> None:
        options = self._options
        planned = options.runs * len(self._prompts)
        waited = waited_seconds(self._root)
        for index in range(options.runs):
            for number, prompt in enumerate(self._prompts):
                self._progress("texts", len(self.runs), planned)
                self.runs.append(self.generate(pipeline, prompt, number, index))
        if waited is not None:
            self.record["waited_for_cpu_s"] = round((waited_seconds(self._root) or 0) - waited, 4)
        memory = self.record.setdefault("memory", {})
        now = process_memory(self._root)
        if now is not None:
            memory["steady_mib"] = round(now.resident, 2)
            memory["peak_mib"] = round(now.peak, 2)
        if isinstance(pipeline.engines, Accountable):
            held = pipeline.engines.account()
            memory["engine_account_mib"] = {
                name: round(size / (1 << 20), 3) for name, size in held.items()
            }

    def _generate_settled(self, pipeline: Pipeline, device: Any) -> None:
        """On an engine that only enqueues, times the stages in a pass that waits for each."""

        def settle() -> None:
            device.flush()
            device.synchronize()

        self._settle = settle
        try:
            for number, prompt in enumerate(self._prompts):
                self._progress("stages", number, len(self._prompts))
                self.settled_runs.append(self.generate(pipeline, prompt, number, 0))
        finally:
            self._settle = None

    def _time_layers(self, pipeline: Pipeline, clocks: LayerClocks) -> None:
        """Generates with the engine's own clocks on, in a pass that counts for nothing else."""
        self._progress("layers", 0, 1)
        prompts = self._prompts
        names = parameter_names(read_graphs(pipeline.bundle).values())
        clocks.start_layers()
        runs = [
            self.generate(pipeline, prompts[number % len(prompts)], number, 0)
            for number in range(1, 1 + LAYER_TEXTS)
        ]
        self.record["layers"] = layer_record(clocks.take_layers(), runs, names)
