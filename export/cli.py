"""`dlm-export`: parses, calls `export_checkpoint`, prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..jetson.targets import TARGETS, describe
from ..runtime.cli_common import DlmCommand, common_options, print_json
from ..runtime.errors import ConfigError

if TYPE_CHECKING:
    from .pack import ExportSettings


class Sizes(click.ParamType):
    """Positive integers separated by commas, and words that stand for one."""

    name = "sizes"

    def __init__(self, *words: str) -> None:
        """Takes the words that are admitted beside integers."""
        self.words = words

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int | str, ...]:
        """Returns integers and words; a usage error names what is neither."""
        if isinstance(value, tuple):
            return value
        sizes: list[int | str] = []
        for part in map(str.strip, str(value).split(",")):
            if part in self.words:
                sizes.append(part)
                continue
            if not part.isdecimal() or int(part) < 1:
                choice = "".join(f" nor {word!r}" for word in self.words)
                self.fail(f"{part!r} is no positive integer{choice}", param, ctx)
            sizes.append(int(part))
        return tuple(sizes)


def _decoding(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ConfigError('--decoding must be a JSON object such as \'{"rule": "threshold"}\'')
    return value


def _list_targets(as_json: bool) -> None:
    """Prints every target with its power modes."""
    if as_json:
        print_json({name: item.to_json() for name, item in TARGETS.items()})
        return
    for item in TARGETS.values():
        click.echo(describe(item))


def _export_chosen(
    checkpoint: Path,
    output: Path,
    settings: ExportSettings,
    max_loss_percent: float,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Lets `--auto` choose, and exports what it chose."""
    from .auto import choose
    from .pack import check_output, export_checkpoint

    check_output(output)
    context = click.get_current_context()
    fixed = context.get_parameter_source("precision") is click.core.ParameterSource.COMMANDLINE
    settings, choice = choose(
        checkpoint,
        settings,
        progress,
        precisions=(settings.precision,) if fixed else (),
        max_loss_percent=max_loss_percent,
    )
    return export_checkpoint(checkpoint, output, settings, progress, notes={"auto": choice})


@click.command("dlm-export", cls=DlmCommand)
@click.argument("checkpoint", type=click.Path(path_type=Path), required=False)
@click.option(
    "--target",
    default="cpu",
    show_default=True,
    help="Where the bundle will run: cpu, host (this machine), orin-nano, ...; list prints all, "
    "with their power modes.",
)
@click.option(
    "--power-mode",
    "mode",
    help="Power mode of the board that the plan is made for, 25w or maxn-super for example. "
    "Default: the one it boots in.",
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    help="fp32 or fp16. fp16 stores weights in half the bytes; arithmetic stays float32 on cpu "
    "and host, and is float16 on a board. With --auto: the only candidate, if given.",
)
@click.option(
    "--block",
    "blocks",
    type=Sizes("full"),
    help="Positions denoised at a time, one or more sizes; full is the whole canvas, which masked "
    "models get anyway. Default: those trained on.",
)
@click.option(
    "--context",
    "contexts",
    type=Sizes(),
    help="Committed positions that a graph sees, one or more sizes. Default: half of all, and all.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The bundle, MODEL.dlm.")
@click.option(
    "--auto",
    "automatic",
    is_flag=True,
    help="Choose block, contexts and precision: the best predicted tokens/s on the target within "
    "--max-memory and --max-loss. Decodes and scores with each candidate, which takes a minute. "
    "Given --block, --context or --precision are the only candidates.",
)
@click.option(
    "--max-memory",
    "max_memory_mib",
    type=click.FloatRange(min=1),
    help="MiB that the bundle may take on its target. Default: what the target has free.",
)
@click.option(
    "--max-loss",
    "max_loss_percent",
    default=1.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="With --auto: percent by which the bound may be worse than the best candidate's.",
)
@click.option("--data", type=click.Path(path_type=Path), help="Text (UTF-8) to check parity on.")
@click.option(
    "--card", type=click.Path(path_type=Path), help="Markdown that opens the bundle's card."
)
@click.option("--decoding", help="Default decoding settings of the bundle, a JSON object.")
@click.option("--seed", default=0, show_default=True, help="Of the masks parity is measured under.")
@common_options
def main(
    checkpoint: Path | None,
    output: Path | None,
    decoding: str | None,
    automatic: bool,
    max_loss_percent: float,
    as_json: bool,
    verbose: int,
    **given: Any,
) -> None:
    """Turns a CHECKPOINT folder into a bundle: traced, checked against PyTorch, packed."""
    if given["target"] == "list":
        _list_targets(as_json)
        return
    if checkpoint is None:
        raise click.UsageError("Missing argument 'CHECKPOINT'.")
    if output is None:
        raise click.UsageError("Missing option '-o' / '--output'.")
    # torch takes seconds to import: usage errors should not wait for it.
    from .pack import ExportSettings, export_checkpoint

    settings = ExportSettings(
        decoding=_decoding(decoding),
        **{name: value for name, value in given.items() if value is not None},
    )

    def progress(line: str) -> None:
        click.echo(line, err=True)

    if automatic:
        report = _export_chosen(checkpoint, output, settings, max_loss_percent, progress)
    else:
        report = export_checkpoint(checkpoint, output, settings, progress)
    if as_json:
        print_json(report)
        return
    click.echo(f"{report['bundle']}  {report['bytes'] / 2**20:.1f} MiB  sha256 {report['sha256']}")
    for graph in report["parity"].values():
        for shape in graph["shapes"]:
            figures = shape["against_torch"]
            click.echo(
                f"{shape['graph']}  block {shape['block']}  context {shape['context']}  "
                f"largest relative error {figures['max_relative_error']:.1e}  "
                f"same top-1 {figures['top1_agreement']:.2%}"
            )
    if verbose:
        for name, figures in report["graphs"].items():
            counts = ", ".join(f"{op} {number}" for op, number in figures["operators"].items())
            click.echo(f"{name}: {counts}", err=True)


if __name__ == "__main__":
    main()
