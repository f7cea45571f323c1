"""What `dlm-run` does once its options are known: text, JSON, a live view, a bundle's facts."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import click

from ..bundle.bundle import default_bundle_path, open_bundle
from ..bundle.manifest import dims_text
from ..errors import EngineError
from ..families.base import condition_inputs
from ..families.table import decoding_settings
from ..pipeline import Pipeline, TextGeneration, TextResult
from ..process import peak_rss_mib
from ..text.documents import SEPARATOR
from .common import EXIT_INTERRUPTED, note, print_json, styled
from .load import load_pipeline, with_chosen_rule
from .options import RunOptions, read_piped_prompt, read_prompts

_NAME = "dlm-run"
_MIB = 1 << 20
_PLAIN = ("family", "precision", "target", "vocab_size", "max_position")
_NESTED = ("model", "noise_schedule", "decoding", "provenance")


def generate(options: RunOptions) -> None:
    """Writes every text that was asked for; exits 130 with what was committed on Ctrl-C."""
    tolerate_stdout()
    with load(options) as pipeline:
        options = replace(options, settings=with_chosen_rule(_NAME, pipeline, options.settings))
        jobs, first = _jobs(options), True
        several = options.num_samples > 1 or options.prompt_file is not None
        size = pipeline.most_together if several else 1
        if options.verbose and pipeline.batch_times is not None:
            share = "share runs" if size > 1 else "do not share runs"
            note(_NAME, f"{pipeline.batch_times}; texts {share}")
        while some := list(islice(jobs, size)):
            with pipeline.together(len(some)):
                writers = [_Writer(pipeline, options, *job) for job in some]
            for writer in writers:
                if not (first or options.as_json):
                    # A line that a program can split at; eyes need only see that a text begins.
                    click.echo("" if sys.stdout.isatty() else SEPARATOR)
                first = False
                interrupted = False
                try:
                    writer.run()
                except KeyboardInterrupt:
                    interrupted = True
                writer.finish()
                if interrupted:
                    sys.exit(EXIT_INTERRUPTED)


def tolerate_stdout() -> None:
    """Lets a terminal of another encoding show ? for what it lacks, instead of failing."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def load(options: RunOptions, say: Callable[[str], None] | None = None) -> Pipeline:
    """Opens what the options name; raises DlmError."""
    return load_pipeline(
        _NAME,
        options.bundle,
        engine=options.engine,
        threads=options.threads,
        expect_sha256=options.expect_sha256,
        verbose=0 if say else options.verbose,
        weak_types=options.weak_types,
        say=say,
    )


def _jobs(options: RunOptions) -> Iterator[tuple[str, int]]:
    if options.prompt_file:
        prompts = read_prompts(options.prompt_file)
    elif options.prompt is None and options.infill is None:
        prompts = iter([read_piped_prompt()])
    else:
        prompts = iter([options.prompt or ""])
    for prompt in prompts:
        for sample_index in range(options.num_samples):
            yield prompt, sample_index


def _start(
    pipeline: Pipeline, options: RunOptions, prompt: str, sample_index: int
) -> TextGeneration:
    common = {
        "seed": options.seed,
        "sample_index": sample_index,
        "provisional": options.watch,
        "conditions": options.conditions,
        **options.settings,
    }
    if options.infill is not None:
        if options.gap_tokens:
            common["gap_tokens"] = options.gap_tokens
        return pipeline.infill(options.infill, **common)
    return pipeline.generate(
        prompt, max_tokens=options.max_tokens, stop=options.stop, slide=options.slide, **common
    )


class _Writer:
    """One text on its way to stdout."""

    def __init__(
        self, pipeline: Pipeline, options: RunOptions, prompt: str, sample_index: int
    ) -> None:
        self._pipeline, self._options, self._prompt = pipeline, options, prompt
        self._generation = _start(pipeline, options, prompt, sample_index)
        self._num_written: int | None = None
        """Characters of the text on stdout already; None: not even the prompt is."""

    def run(self) -> None:
        """Decodes to the end, showing what is to be shown meanwhile."""
        if self._options.watch:
            self._watch()
        elif self._options.as_json or self._options.infill is not None:
            self._generation.result()
        else:
            self._write("")
            for span in self._generation:
                if span.text:
                    self._write(span.text)

    def finish(self) -> None:
        """Prints the rest of the text, or the object, and the figures."""
        result = self._generation.so_far()
        if self._options.as_json:
            print_json(record(result, self._pipeline, self._prompt))
        else:
            self._write(result.text[self._num_written or 0 :] + "\n")
        if result.approximate:
            note(_NAME, "approximate: the text outgrew the largest context and went on in a window")
        if self._options.verbose or (sys.stderr.isatty() and not self._options.as_json):
            note(_NAME, summary(result))

    def _write(self, text: str) -> None:
        if self._num_written is None:
            sys.stdout.write(styled(self._prompt, sys.stdout, bold=True))
            self._num_written = 0
        sys.stdout.write(text)
        sys.stdout.flush()
        self._num_written += len(text)

    def _watch(self) -> None:
        from ..frames import canvases
        from .watch import Watch

        pipeline, delay = self._pipeline, self._options.watch_delay
        mask_token_id = pipeline.manifest.mask_token_id
        with Watch(sys.stdout, pipeline.tokenizer.decode, delay=delay) as watch:
            for nfe, canvas in canvases(self._generation, mask_token_id):
                revised = f", {canvas.num_revised} tokens revised" if canvas.num_revised else ""
                watch.show(canvas, f"{counted(nfe, 'graph run')}{revised}")


def record(result: TextResult, pipeline: Pipeline, prompt: str) -> dict[str, Any]:
    """Returns the object that --json prints; its keys are stable."""
    return {
        "text": result.text,
        "token_ids": list(result.token_ids),
        "nfe": result.nfe,
        "tokens_per_nfe": round(result.tokens_per_nfe, 4),
        "seconds": {stage: round(value, 6) for stage, value in result.seconds.items()},
        "tokens_per_s": round(result.tokens_per_s, 2),
        "peak_rss_mib": round(peak_rss_mib(), 1),
        "engine": result.engine,
        "engine_reason": pipeline.engines.reason,
        "precision": result.precision,
        "rule": result.rule,
        "seed": result.seed,
        "sample_index": result.sample_index,
        "prompt": prompt,
        "gaps": None if result.gaps is None else list(result.gaps),
        "finish_reason": result.finish_reason,
        "approximate": result.approximate,
        "settings": dict(result.settings),
        "batch": _batch(pipeline),
        "load_seconds": {part: round(value, 6) for part, value in pipeline.load_seconds.items()},
        "bundle_sha256": pipeline.bundle.sha256,
    }


def _batch(pipeline: Pipeline) -> dict[str, Any] | None:
    """Returns what decided whether texts share runs; None where nothing had to."""
    times = pipeline.batch_times
    if times is None:
        return None
    return {
        "size": times.batch,
        "run_ms": round(1e3 * times.together, 4),
        "run_ms_of_one": round(1e3 * times.alone, 4),
        "used": pipeline.most_together > 1,
    }


def counted(number: int, what: str) -> str:
    """Returns "1 token" or "2 tokens"."""
    return f"{number} {what}{'s' if number != 1 else ''}"


def summary(result: TextResult) -> str:
    """Returns the figures of one text in a line."""
    return (
        f"{counted(len(result.token_ids), 'token')}, {result.tokens_per_s:.0f} tokens/s, "
        f"{counted(result.nfe, 'graph run')}, {result.tokens_per_nfe:.2f} tokens each; "
        f"{result.seconds['total']:.2f} s, {peak_rss_mib():.0f} MiB; "
        f"{result.engine} {result.precision}, rule {result.rule}, seed {result.seed}, "
        f"ended by {result.finish_reason}"
    )


def show_info(options: RunOptions) -> None:
    """Prints what the bundle says about itself; runs no graph."""
    path = default_bundle_path() if options.bundle is None else options.bundle
    bundle = open_bundle(path, expect_sha256=options.expect_sha256)
    manifest = bundle.manifest
    names = ("name", "dims", "purpose", "block", "precision")
    shapes = [{name: getattr(graph, name) for name in names} for graph in manifest.graphs]
    conditions = {
        role: " or ".join(sorted({f"{tensor.dtype} {tensor.shape}" for _, tensor in inputs}))
        for role, inputs in condition_inputs(manifest.graphs).items()
    }
    facts = {
        "path": str(path),
        "sha256": bundle.sha256,
        "size_mib": round(path.stat().st_size / _MIB, 2),
        **{name: getattr(manifest, name) for name in _PLAIN},
        "block_sizes": list(manifest.block_sizes),
        "conditions": conditions,
        "graphs": shapes,
        **{name: dict(getattr(manifest, name)) for name in _NESTED},
    }
    if options.as_json:
        print_json(facts)
        return
    facts["graphs"] = ", ".join(
        f"{s['name']} {dims_text(s['dims'])}, to {s['purpose']} ({s['precision']})" for s in shapes
    )
    facts["conditions"] = conditions or "none"
    facts["block_sizes"] = ", ".join(map(str, manifest.block_sizes))
    facts["decoding"] = decoding_settings(manifest, {}).to_json()
    for name, value in facts.items():
        if isinstance(value, dict):
            value = _brief(value)
        click.echo(f"{name:>14}  {value}")


def _brief(facts: Mapping[str, Any]) -> str:
    """Returns the plain facts in a line, and the names of those that only --json shows."""
    plain = [f"{k} {v}" for k, v in facts.items() if not isinstance(v, dict | list)]
    nested = [key for key, value in facts.items() if isinstance(value, dict | list)]
    return ", ".join(plain + ([f"{' and '.join(nested)}: see --json"] if nested else []))


def check(options: RunOptions) -> None:
    """Replays the bundle's golden vectors on this engine; raises EngineError."""
    from ..measure.check import check_bundle

    with load(options) as pipeline:
        report = check_bundle(pipeline.bundle, pipeline.model)
    if options.as_json:
        print_json(report)
    else:
        click.echo(
            f"{'agrees' if report['ok'] else 'DIFFERS'}: {report['rows']} rows of "
            f"{report['cases']} cases on {report['engine']}, largest relative error "
            f"{report['max_relative_error']:.1e} (tolerance {report['tolerance']:.1e}), "
            f"top-1 agreement {report['top1_agreement']:.2%}"
        )
    if not report["ok"]:
        raise EngineError(
            f"{report['engine']} computes something else than the bundle's golden vectors; "
            "try another --engine, or export the bundle again"
        )
