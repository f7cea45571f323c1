"""`dlm-profile`: what a bundle takes on this machine, as a table, JSON and one HTML page.

Parses, calls one function, prints. Everything heavy is imported once the options are known to make
sense.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ...runtime.cli.common import (
    ENGINE,
    EXPECT_SHA256,
    PROMPT_FILE,
    SEED,
    THREADS,
    DlmCommand,
    Section,
    common_options,
    grouped,
    refuse_together,
)
from ...runtime.cli.decoding import decoding_options, take_settings
from ...runtime.errors import ConfigError

NAME = "dlm-profile"
_TASKS = ("--render", "--compare", "--doctor")


def _options(function: Callable[..., None]) -> Callable[..., None]:
    whole = click.IntRange(min=1)
    path = click.Path(path_type=Path)
    parts = [
        grouped(
            Section("Report"),
            click.option("--out", type=path, metavar="DIR", help="Write run.json and report.html."),
            click.option(
                "--overwrite", is_flag=True, help="Replace a report that is in DIR already."
            ),
        ),
        grouped(
            Section("Texts"),
            PROMPT_FILE,
            click.option("--runs", type=whole, default=3, help="Texts per prompt."),
            click.option(
                "--warm-up",
                type=click.IntRange(min=0),
                default=2,
                help="Texts before the first that counts.",
            ),
            click.option(
                "-n", "--max-tokens", type=whole, default=128, help="New tokens at most per text."
            ),
            SEED,
            EXPECT_SHA256,
        ),
        decoding_options(),
        grouped(
            Section("Sweep"),
            click.option(
                "--sweep",
                is_flag=True,
                help="Also try rules, blocks and threads: speed against quality.",
            ),
            click.option(
                "--axis",
                "axes",
                multiple=True,
                metavar="NAME=V,V",
                help="What --sweep tries: rule=threshold:0.9,factor:1 or block=16,32 or "
                "threads=1,2; may be repeated.  [default: all of them]",
            ),
            click.option("--texts", type=whole, default=8, help="Texts per swept setting."),
            click.option(
                "--judge",
                type=path,
                metavar="JUDGE.dlm",
                help="Bundle that reads the swept texts.  [default: the bundle itself]",
            ),
        ),
        grouped(
            Section("Engine and machine"),
            ENGINE,
            THREADS,
            click.option(
                "--layers/--no-layers",
                default=True,
                help="Time single layers, in a pass of its own.",
            ),
            click.option(
                "--sensors", default="auto", help="auto, sysfs, tegrastats, jtop or none."
            ),
            click.option("--rate", type=float, default=20.0, help="Sensor readings/s, 10-50."),
            click.option(
                "--power-mode",
                metavar="NAME",
                help="Set the board's power mode for the run (sudo nvpmodel) and set it back "
                "after.",
            ),
        ),
        grouped(
            Section("Forecast"),
            click.option(
                "--target",
                metavar="NAME",
                help="Compare with the forecast for this target (see dlm-export --target list).  "
                "[default: this machine's]",
            ),
            click.option(
                "--mode", metavar="NAME", help="The target's power mode.  [default: as set]"
            ),
            click.option("--no-predict", is_flag=True, help="Measure only."),
        ),
        grouped(
            Section("Instead of a measurement"),
            click.option(
                "--render",
                type=path,
                metavar="RUN.json",
                help="Make the page of a run, here or measured elsewhere.",
            ),
            click.option(
                "--compare",
                nargs=2,
                type=path,
                metavar="A.json B.json",
                help="Two runs side by side; with --out also as a page.",
            ),
            click.option("--doctor", is_flag=True, help="Check whether this machine is ready."),
            click.option(
                "--serve",
                is_flag=True,
                help="Measure the bundle under dlm-serve, from 1, 2, 4 and 8 clients.",
            ),
        ),
    ]
    for part in reversed(parts):
        function = part(function)
    return function


@click.command(NAME, cls=DlmCommand)
@click.argument("bundle", required=False, type=click.Path(path_type=Path), metavar="[MODEL.dlm]")
@_options
@common_options
def main(bundle: Path | None, as_json: bool, verbose: int, **given: Any) -> None:
    """Measures a bundle on this machine: time by stage, memory by part, power, layers.

    Texts are generated over a few prompts after a warm-up, while sensors are read. The table goes
    to stdout; with --out, DIR gets run.json and report.html, a page that loads nothing from
    elsewhere. Drawing it needs matplotlib (pip install 'dlm-edge[report]'); a board needs none:
    copy run.json to a desktop and use --render. Ctrl-C ends the run and keeps what was measured.

    Without MODEL.dlm, the small model that ships with the package is measured. Nothing needs root,
    and no setting of the board is changed, unless --power-mode asks for it.
    """
    _check(bundle, given)
    if given["doctor"]:
        from .doctor import show_doctor

        show_doctor(as_json=as_json)
    elif given["render"]:
        from .runs import render

        render(given["render"], given["out"], overwrite=given["overwrite"], as_json=as_json)
    elif given["compare"]:
        from .runs import show_comparison

        show_comparison(
            given["compare"], given["out"], overwrite=given["overwrite"], as_json=as_json
        )
    elif given["serve"]:
        from .serving import measure as measure_serving

        measure_serving(bundle, take_settings(given), given, as_json=as_json)
    else:
        from .measure import measure

        measure(bundle, take_settings(given), given, as_json=as_json, verbose=verbose)


def _check(bundle: Path | None, given: dict[str, Any]) -> None:
    present = {
        "--render": given["render"] is not None,
        "--compare": bool(given["compare"]),
        "--doctor": given["doctor"],
        "--serve": given["serve"],
        "--sweep": given["sweep"],
        "--power-mode": given["power_mode"] is not None,
        "--out": given["out"] is not None,
        "--no-predict": given["no_predict"],
        "--target": given["target"] is not None,
        "--mode": given["mode"] is not None,
        "MODEL.dlm": bundle is not None,
    }
    reason = "each is a run of its own"
    pairs = [(a, b, reason) for i, a in enumerate(_TASKS) for b in _TASKS[i + 1 :]]
    others = ("MODEL.dlm", "--sweep", "--power-mode")
    pairs += [(task, other, "it measures no bundle") for task in _TASKS for other in others]
    pairs += [("--no-predict", o, "it is about the forecast") for o in ("--target", "--mode")]
    pairs.append(("--doctor", "--out", "it writes no report"))
    alone = (*_TASKS, "--sweep", "--power-mode", "--target", "--mode", "--no-predict")
    pairs += [("--serve", other, "it measures the server alone") for other in alone]
    refuse_together(present, *pairs)
    if not given["sweep"]:
        source = click.get_current_context().get_parameter_source("texts")
        texts = source is ParameterSource.COMMANDLINE
        belong = (("--axis", given["axes"]), ("--judge", given["judge"]), ("--texts", texts))
        for option, value in belong:
            if value:
                raise ConfigError(
                    f"{option} has no effect without --sweep; add it or leave both out"
                )


if __name__ == "__main__":
    main()
