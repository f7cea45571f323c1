"""What `dlm-profile` does to measure: the run itself, its sweep and forecast, and where they go."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from ...runtime.bundle.bundle import default_bundle_path, open_bundle
from ...runtime.cli.common import EXIT_INTERRUPTED, note
from ...runtime.cli.options import read_prompts
from ...runtime.cli.progress import ProgressLine
from ...runtime.errors import DlmError
from ...runtime.families.table import decoding_blocks
from ...runtime.pipeline import Pipeline
from ..profile.profile import ProfileOptions, Profiler
from ..profile.sweep import Axes, Sweep, parse_axes, require_blocks
from ..sensors.board import read_machine
from ..sensors.power import current_mode, find_mode, mode_command, set_mode
from ..sensors.sysfs import ROOT
from ..targets import target as find_target
from .runs import NAME, PAGE_NAME, RUN_NAME, draw, prepare_folder, show, write_run


def measure(
    bundle: Path | None,
    settings: Mapping[str, Any],
    given: Mapping[str, Any],
    *,
    as_json: bool,
    verbose: int,
) -> None:
    """Measures, prints and writes; exits 130 with what there was on Ctrl-C."""
    axes = parse_axes(given["axes"])
    options = _options_of(bundle, settings, given)
    _check_first(bundle, axes, given)
    out: Path | None = given["out"]
    if out is not None:
        prepare_folder(out, (RUN_NAME, PAGE_NAME), overwrite=given["overwrite"])
    bar = ProgressLine()
    with _power_mode(given["power_mode"]):
        profiler = Profiler(options, progress=partial(_draw, bar))
        complete = False
        try:
            profiler.measure()
            if given["sweep"]:
                _sweep(profiler, axes, given, bar)
            complete = True
        except KeyboardInterrupt:
            pass
        finally:
            bar.wipe()
            # A fault keeps what was measured before it, too; it is raised again below.
            record = profiler.finish(complete=complete)
            if out is not None and (complete or profiler.runs):
                # What prevents writing is said below, under the table.
                with suppress(DlmError):
                    write_run(record, out)
    try:
        if complete and not given["no_predict"]:
            _predict(record, options, given)
        if out is not None and profiler.runs:
            write_run(record, out)
            draw(record, out)
    finally:
        show(record, as_json=as_json)
    if verbose and out is not None:
        note(NAME, f"wrote {out / RUN_NAME}")
    if not complete:
        sys.exit(EXIT_INTERRUPTED)


def _options_of(
    bundle: Path | None, settings: Mapping[str, Any], given: Mapping[str, Any]
) -> ProfileOptions:
    prompts = tuple(read_prompts(given["prompt_file"])) if given["prompt_file"] else None
    own = {item.name: given[item.name] for item in fields(ProfileOptions) if item.name in given}
    return ProfileOptions(**own, bundle=bundle, settings=settings, prompts=prompts)


def _draw(bar: ProgressLine, what: str, done: int, planned: int) -> None:
    bar.show(done, planned, what)


def _check_first(bundle: Path | None, axes: Axes, given: Mapping[str, Any]) -> None:
    """Refuses target, mode, judge and blocks that would fail only when all is measured."""
    place = find_target(given["target"] or read_machine(ROOT).target)
    if given["mode"] is not None:
        place.mode(given["mode"])
    if given["judge"] is not None:
        open_bundle(given["judge"])
    if axes.blocks:
        opened = open_bundle(bundle or default_bundle_path())
        require_blocks(axes.blocks, decoding_blocks(opened.manifest))


def _sweep(profiler: Profiler, axes: Axes, given: Mapping[str, Any], bar: ProgressLine) -> None:
    """Runs the sweep into the profiler's record; an interrupted one leaves its cells there."""
    assert profiler.pipeline is not None
    judge = Pipeline.load(given["judge"], threads=given["threads"]) if given["judge"] else None
    try:
        sweep = Sweep(
            profiler,
            profiler.pipeline,
            axes,
            prompts=profiler.record["settings"]["prompts"],
            num_texts=given["texts"],
            judge=judge,
            progress=partial(_draw, bar),
        )
        try:
            with profiler.span("sweep"):
                sweep.run()
        finally:
            profiler.record["sweep"] = sweep.to_json()
    finally:
        if judge is not None:
            judge.close()


def _predict(record: dict[str, Any], options: ProfileOptions, given: Mapping[str, Any]) -> None:
    """Adds the forecast for this machine, or says on stderr why there is none."""
    from ..profile.prediction import add_prediction

    try:
        add_prediction(record, options.bundle, target=given["target"], mode=given["mode"])
    except DlmError as error:
        if given["target"] or given["mode"]:
            raise
        note(NAME, f"no forecast beside the measurement: {error}")


@contextmanager
def _power_mode(wanted: str | None) -> Iterator[None]:
    """Sets a power mode for the run and sets the one before back, saying so both times."""
    if wanted is None:
        yield
        return
    mode, before = find_mode(ROOT, wanted), current_mode(ROOT)
    if before is not None and before.number == mode.number:
        note(NAME, f"the power mode is {mode.name} already")
        yield
        return
    was = f" (now {before.name}; it is set back afterwards)" if before else ""
    note(NAME, f"setting power mode {mode.name}{was}: {' '.join(mode_command(mode))}")
    set_mode(ROOT, mode)
    try:
        yield
    finally:
        if before is not None:
            note(NAME, f"setting power mode {before.name} back: {' '.join(mode_command(before))}")
            set_mode(ROOT, before)
