"""Speed against quality over decoding rule, block size and threads: the frontier and its settings.

A cell is one setting. Rules run at every block size; threads change no text, so they run at the
bundle's own rule and block and are judged by their speed alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from ...runtime.cli.decoding import decoding_flags
from ...runtime.decoding import find_rule
from ...runtime.engines.onnxruntime import default_threads
from ...runtime.errors import ConfigError
from ...runtime.families.table import (
    RULES,
    decoding_blocks,
    decoding_settings,
    find_family,
    rules_of,
)
from ...runtime.measure.judge import Judge
from ...runtime.measure.text_quality import repetition, word_entropy
from ...runtime.pipeline import Pipeline
from .profile import Profiler
from .run_record import TextRun

AXES = ("rule", "block", "threads")


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """What to try; None: the default of the axis."""

    rules: tuple[str, ...] | None = None
    """`rule` or `rule:value`."""
    blocks: tuple[int, ...] | None = None
    threads: tuple[int, ...] | None = None


def parse_axes(texts: Sequence[str]) -> Axes:
    """Reads `rule=threshold:0.9,factor:1`, `block=16,32`, `threads=1,2`; raises ConfigError."""
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        if name not in AXES or not values or name in found:
            raise ConfigError(
                f"--axis wants one of {', '.join(AXES)} with its values, each once, like "
                f"block=16,32; found {text!r}"
            )
        found[name] = tuple(values.split(","))
    try:
        for cell in found.get("rule", ()):
            parse_cell(cell)
    except ConfigError as error:
        raise ConfigError(f"--axis rule: {error}") from None
    return Axes(
        rules=found.get("rule"),
        blocks=_whole("block", found.get("block")),
        threads=_whole("threads", found.get("threads")),
    )


def _whole(name: str, values: Sequence[str] | None) -> tuple[int, ...] | None:
    if values is None:
        return None
    if not all(value.isdecimal() and int(value) for value in values):
        raise ConfigError(f"--axis {name} wants whole numbers from 1 on, found {','.join(values)}")
    return tuple(map(int, values))


def parse_cell(text: str) -> dict[str, Any]:
    """Reads `rule` or `rule:value` into decoding settings; raises ConfigError."""
    name, colon, value = text.partition(":")
    rule = find_rule(name, RULES.values(), of="any model")
    if not colon:
        return {"rule": name}
    option = next(iter(rule.own_options().values()), None)
    if option is None:
        raise ConfigError(f"rule {name} has no option of its own, found {text!r}; give {name}")
    try:
        return {"rule": name, option.name: option.kind(value)}
    except ValueError:
        raise ConfigError(f"wanted a number behind the colon, found {text!r}") from None


def default_cells(family: str) -> list[dict[str, Any]]:
    """Gives the rules of a family, with the values of their options, that a sweep tries unasked."""
    cells: list[dict[str, Any]] = []
    for rule in rules_of(family):
        cells += [{"rule": rule.name}] if rule.swept else []
        for option in rule.own_options().values():
            cells += [{"rule": rule.name, option.name: value} for value in option.sweep]
    return cells


def learnt_blocks(pipeline: Pipeline) -> list[int]:
    """Returns the block sizes that a sweep tries unasked: those that the model has learnt.

    A bundle may offer others (the whole canvas, for infilling), which run, but whose text says
    nothing of the model. Where none was learnt, all that leave room for a context are taken; and
    of a family whose text is the same at every size.
    """
    manifest = pipeline.manifest
    shapes = decoding_blocks(manifest)
    usable = [block for block, buckets in shapes.items() if buckets[-1].context >= block]
    if find_family(manifest.family).exact:
        return usable
    return [block for block in usable if block in manifest.block_sizes] or usable or list(shapes)


def require_blocks(blocks: Iterable[int], offered: Collection[int]) -> None:
    """Raises ConfigError for a block that the bundle has not."""
    wrong = [block for block in blocks if block not in offered]
    if wrong:
        raise ConfigError(
            f"--axis block={wrong[0]}: the bundle has the blocks {', '.join(map(str, offered))}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedTexts:
    """Of a set of texts."""

    bits_per_char: float | None
    """Mean over texts; None: all together are shorter than the judge's smallest block."""
    half_width: float | None
    """95 % over texts; None: fewer than two."""
    entropy: float
    """Of words, in nats, mean over texts."""
    repetition: float | None
    """Share of a text's runs of four words that occurred in it before, mean over texts."""
    num_texts: int
    num_scored: int
    """Texts long enough for the judge, or part of what was long enough together."""
    together: bool
    """Whether texts were read as one, since each alone is shorter than the judge's smallest block:
    a model of whole canvases reads nothing shorter than a canvas."""


def measure_quality(texts: Sequence[str], judge: Judge) -> JudgedTexts:
    """Reads every text."""
    words = [text.lower().split() for text in texts]
    bits = [score.bits / score.num_chars for score in judge.score(texts) if score]
    together = None if bits or len(texts) < 2 else judge.read(*texts)
    whole = together and together.bits / together.num_chars
    return JudgedTexts(
        bits_per_char=fmean(bits) if bits else whole,
        half_width=1.96 * stdev(bits) / math.sqrt(len(bits)) if len(bits) > 1 else None,
        entropy=fmean([word_entropy(each) for each in words] or [0.0]),
        repetition=repetition(words),
        num_texts=len(texts),
        num_scored=len(bits) if whole is None else len(texts),
        together=whole is not None,
    )


class Sweep:
    """The cells of one bundle; `cells` grows as they are measured."""

    def __init__(
        self,
        profiler: Profiler,
        pipeline: Pipeline,
        axes: Axes,
        *,
        prompts: Sequence[str],
        num_texts: int,
        judge: Pipeline | None,
        progress: Callable[[str, int, int], None],
    ) -> None:
        """Lists the cells; ConfigError for a block that the bundle has not."""
        self._profiler, self._pipeline, self._progress = profiler, pipeline, progress
        self._prompts, self._num_texts = prompts, num_texts
        self._judge = Judge(judge or pipeline)
        self._axes = axes
        self.cells: list[dict[str, Any]] = []
        self.about = {
            "judge": judge.bundle.path.name if judge else None,
            "judge_sha256": judge.bundle.sha256 if judge else None,
            "texts": num_texts,
        }
        self._planned = self._plan()

    def _plan(self) -> list[tuple[dict[str, Any], int | None]]:
        """Returns (settings over the profiler's own, threads; None: those open) of every cell."""
        pipeline = self._pipeline
        shapes = decoding_blocks(pipeline.manifest)
        own = self._profiler.settings.get("block_size")
        given = [block for block in shapes if block == own]
        blocks = list(self._axes.blocks or given or learnt_blocks(pipeline))
        require_blocks(blocks, shapes)
        planned: dict[str, dict[str, Any]] = {}
        asked = self._axes.rules
        tried = map(parse_cell, asked) if asked else default_cells(pipeline.manifest.family)
        rules: list[dict[str, Any]] = [{}, *tried]
        takes_blocks = bool(blocks) and self._accepts({"block_size": blocks[0]})
        for block in blocks if takes_blocks else [None]:
            size = {} if block is None else {"block_size": block}
            for rule in rules:
                cell = self._with_own({**rule, **size})
                # Not every engine runs every rule; what was asked for by name must not vanish.
                if not rule or self._axes.rules is not None or self._accepts(cell):
                    planned.setdefault(self._effective(cell), cell)
        cells: list[tuple[dict[str, Any], int | None]] = [(cell, None) for cell in planned.values()]
        return cells + [(self._with_own({}), threads) for threads in self._thread_counts()]

    def _with_own(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a cell over the profiler's settings, without what belongs to another rule."""
        found = {**self._profiler.settings, **cell}
        taken = RULES[found.get("rule", self._pipeline.settings().name)].options()
        return {name: value for name, value in found.items() if name == "rule" or name in taken}

    def _effective(self, cell: Mapping[str, Any]) -> str:
        """Returns what makes a cell different from others, which may have the same settings."""
        try:
            return json.dumps(self._pipeline.settings(**cell).to_json(), sort_keys=True)
        except ConfigError:  # said when the cell is measured
            return json.dumps(dict(cell), sort_keys=True)

    def _accepts(self, settings: Mapping[str, Any]) -> bool:
        try:
            decoding_settings(self._pipeline.manifest, settings)
            self._pipeline.generate("", max_tokens=1, **settings)
        except ConfigError:
            return False
        return True

    def _thread_counts(self) -> tuple[int, ...]:
        now = self._pipeline.engines.threads
        wanted = self._axes.threads
        if wanted is None:
            wanted = tuple(2**power for power in range(4) if 2**power <= default_threads())
        return tuple(count for count in wanted if count != now)

    def run(self) -> None:
        """Measures cell after cell."""
        for number, (settings, threads) in enumerate(self._planned):
            self._progress("sweep", number, len(self._planned))
            if threads is None:
                self.cells.append(self._cell(self._pipeline, settings, judged=True))
                continue
            path: Path = self._pipeline.bundle.path
            with Pipeline.load(path, threads=threads, engine=_plain(self._pipeline)) as other:
                self._profiler.generate(other, self._prompts[0], 0, 0, settings)
                self.cells.append(self._cell(other, settings, judged=False))

    def _cell(
        self, pipeline: Pipeline, settings: Mapping[str, Any], *, judged: bool
    ) -> dict[str, Any]:
        runs: list[TextRun] = []
        for number in range(self._num_texts):
            prompt = number % len(self._prompts)
            text = self._prompts[prompt]
            runs.append(self._profiler.generate(pipeline, text, prompt, number, settings))
        effective = pipeline.settings(**settings).to_json()
        nfe = max(1, sum(run.nfe for run in runs))
        cell: dict[str, Any] = {
            "settings": effective,
            "threads": pipeline.engines.threads,
            "flags": flags(settings, pipeline.engines.threads),
            "tokens_per_s": round(median(run.tokens_per_s for run in runs), 3),
            "tokens_per_nfe": round(sum(run.num_tokens for run in runs) / nfe, 4),
            "ms_per_nfe": round(1e3 * sum(run.total_s for run in runs) / nfe, 4),
            "texts_sha256": _sha256(run.text for run in runs),
        }
        if judged:
            texts = [self._prompts[run.prompt] + run.text for run in runs]
            cell["quality"] = asdict(measure_quality(texts, self._judge))
        return cell

    def to_json(self) -> dict[str, Any]:
        """Returns the cells that are there, those on the frontier marked."""
        mark_frontier(self.cells)
        return {**self.about, "planned": len(self._planned), "cells": self.cells}


def _sha256(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _plain(pipeline: Pipeline) -> str:
    return pipeline.engines.name.partition("-")[0]


def flags(settings: Mapping[str, Any], threads: int) -> str:
    """Returns the options of `dlm-run` that decode like this."""
    given = (f"{decoding_flags()[name]} {value} " for name, value in settings.items())
    return f"{''.join(given)}--threads {threads}"


def mark_frontier(cells: Sequence[dict[str, Any]]) -> None:
    """Sets `frontier` on every judged cell that no other beats in both speed and bits.

    Cells that wrote equal texts in as many graph runs are one point, at their median speed, since
    they differ by noise only; all but the first get `same_as`, its flags.
    """
    for cell in cells:
        cell["frontier"] = False
        cell.pop("same_as", None)
    groups: dict[Any, list[dict[str, Any]]] = {}
    for cell in cells:
        if cell.get("quality", {}).get("bits_per_char") is not None:
            key = cell["texts_sha256"], cell["tokens_per_nfe"], cell["threads"]
            groups.setdefault(key, []).append(cell)
    points = []
    for first, *others in groups.values():
        for cell in others:
            cell["same_as"] = first["flags"]
        speed = median(cell["tokens_per_s"] for cell in (first, *others))
        points.append((speed, first["quality"]["bits_per_char"], first))
    for speed, bits, cell in points:
        cell["frontier"] = not any(
            other_speed >= speed
            and other_bits <= bits
            and (other_speed > speed or other_bits < bits)
            for other_speed, other_bits, _ in points
        )
