"""`dlm-export`: parses, calls `export_checkpoint`, prints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..jetson.targets import JETPACKS, TARGETS, describe, jetpack_lines
from ..runtime.bundle.manifest import dims_text
from ..runtime.cli.common import DlmCommand, Section, common_options, grouped, print_json
from ..runtime.cli.decoding import decoding_options, take_settings

if TYPE_CHECKING:
    from .settings import ExportSettings


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class Sizes(click.ParamType):
    """Positive integers separated by commas, or words such as "full"."""

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


class Percent(click.ParamType):
    """A number of per cent, with or without the sign."""

    name = "percent"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Returns the number; a usage error shows what is none."""
        text = str(value).strip().removesuffix("%").strip()
        try:
            number = float(text)
        except ValueError:
            self.fail(f"{value!r} is no number of per cent", param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no number of per cent", param, ctx)
        return number


def _list_targets(as_json: bool, verbose: int) -> None:
    """Prints every target with its power modes, and what each JetPack brings."""
    if as_json:
        targets = {name: item.to_json() for name, item in TARGETS.items()}
        print_json({"targets": targets, "jetpacks": [asdict(item) for item in JETPACKS]})
        return
    for item in TARGETS.values():
        click.echo(describe(item, sources=bool(verbose)))
    click.echo()
    for line in jetpack_lines(sources=bool(verbose)):
        click.echo(line)
    if not verbose:
        click.echo("\nWhere each fact is from: -v, or --json.")


def _export_chosen(
    checkpoint: Path, output: Path, settings: ExportSettings, progress: Callable[[str], None]
) -> dict[str, Any]:
    from .auto.auto import choose
    from .pack import export_checkpoint

    context = click.get_current_context()
    fixed = context.get_parameter_source("precision") is click.core.ParameterSource.COMMANDLINE
    precisions = (settings.precision,) if fixed else ()
    settings, choice = choose(checkpoint, settings, progress, precisions=precisions)
    return export_checkpoint(checkpoint, output, settings, progress, notes={"auto": choice})


def _forecast(
    checkpoint: Path, settings: ExportSettings, progress: Callable[[str], None], as_json: bool
) -> None:
    from .checks.budget import forecast_lines
    from .pack import forecast_checkpoint

    forecast = forecast_checkpoint(checkpoint, settings, progress)
    if as_json:
        print_json(forecast)
        return
    for line in forecast_lines(forecast):
        click.echo(line)


@click.command("dlm-export", cls=DlmCommand)
@click.argument("checkpoint", type=click.Path(path_type=Path), required=False)
@grouped(
    Section("Bundle"),
    click.option("-o", "--output", type=click.Path(path_type=Path), help="The bundle, MODEL.dlm."),
    click.option(
        "--block",
        "blocks",
        type=Sizes("full"),
        help="Positions denoised at a time, one or more sizes; full is the whole canvas, which "
        "masked models get anyway. Default: those trained on.",
    ),
    click.option(
        "--context",
        "contexts",
        type=Sizes(),
        help="Committed positions that a graph sees, one or more sizes. Default: half of all, and "
        "all.",
    ),
    click.option(
        "--batch",
        default=1,
        type=click.IntRange(min=1),
        help="Texts that may share a run: every graph shape is offered for so many, too.",
    ),
    click.option("--card", type=_FILE, help="Markdown that opens the bundle's card."),
    click.option(
        "--data",
        type=_FILE,
        help="Text (.txt, .jsonl or .parquet) to check parity and measure losses on. Default: a "
        "paragraph, and every other document of the calibration text.",
    ),
    click.option(
        "--tokenizer",
        help="Where the tokenizer of a checkpoint is that has none: a tokenizer.json, its folder, "
        "or owner/name on the hub (openai-community/gpt2 for mdlm-owt and its kind).",
    ),
    click.option("--seed", default=0, help="Of masks, draws and calibration."),
)
@grouped(
    Section("Target"),
    click.option(
        "--target",
        default="cpu",
        help="Where the bundle will run: cpu, host (this machine), orin-nano, ...; list prints "
        "all, with their power modes.",
    ),
    click.option(
        "--power-mode",
        "mode",
        help="Power mode of the board that the forecast is made for, 25w or maxn-super for "
        "example. Default: the one it boots in.",
    ),
    click.option(
        "--max-memory",
        "max_memory_mib",
        type=click.FloatRange(min=1),
        help="MiB that the bundle may take on its target. Default: what the target has free.",
    ),
    click.option(
        "--auto",
        "automatic",
        is_flag=True,
        help="Choose block size, contexts and precision: the best predicted tokens/s on the target "
        "within --max-memory and --max-loss. Makes, decodes and scores each candidate, so it takes "
        "several times as long. Given --block, --context or --precision are the only candidates.",
    ),
    click.option(
        "--dry-run",
        is_flag=True,
        help="Predict memory, and for a board the time of a run, and write nothing. int8 and "
        "int4 are predicted as --uncalibrated makes it.",
    ),
    click.option("--force", is_flag=True, help="Write a bundle that is beyond its budget, too."),
)
@grouped(
    Section("Precision and calibration"),
    click.option(
        "--precision",
        default="fp32",
        help="fp32, fp16, int8 or int4. fp16 stores weights in half the bytes; arithmetic stays "
        "float32 on cpu and host, and is float16 on a board. int8 multiplies integers in the "
        "linear layers; int4 stores their weights in 4 bits, by groups of 32 inputs on cpu and "
        "host, of 128 or 64 on a board.",
    ),
    click.option(
        "--calibration-data",
        type=_FILE,
        help="Text (.txt with <|endoftext|> between documents, .jsonl or .parquet) of the kind "
        "that the model will write, to calibrate and measure fp16, int8 and int4 on. Default: the "
        "text that training was validated on, if that is a .txt file and still there.",
    ),
    click.option(
        "--uncalibrated",
        is_flag=True,
        help="int8 or int4 without any text: weights are rounded, nothing is fitted and no loss is "
        "measured. On a board only the weights are int8 then, products float16.",
    ),
    click.option(
        "--max-loss",
        type=Percent(),
        help="Per cent of perplexity that may be lost (0.5, with --precision int4 3), at the worst "
        "of the block sizes that texts are decoded or filled by: layers go back to floating point "
        "until it holds, and nothing is written if it cannot. With --auto, against its best "
        "candidate.",
    ),
    click.option(
        "--loss-tokens",
        default=8192,
        help="Held-out tokens to measure losses on, at most; 64 or more.",
    ),
    click.option("--recipe", type=_FILE, help="An edited recipe.json of an earlier report."),
    click.option(
        "--canvases",
        type=click.Path(path_type=Path),
        help="File for the canvases that the model is calibrated on: read if it is there and "
        "belongs to this checkpoint, text and sizes, else recorded and written. It serves "
        "every precision and target; some hundred MiB, and 1 GiB for each of four sets at "
        "most.",
    ),
)
@grouped(
    Section("Report"),
    click.option(
        "--judge",
        type=_FILE,
        help="A bundle that reads the samples of the report: bits per character. A causal one is "
        "exact.",
    ),
    click.option(
        "--report-dir",
        type=click.Path(path_type=Path),
        help="Folder for report.json, report.html and recipe.json. Default: MODEL.report beside "
        "-o.",
    ),
    click.option(
        "--report-import",
        "import_report",
        type=click.Path(dir_okay=False, path_type=Path),
        help="File for what was understood of a checkpoint (family, shape, special ids, block "
        "sizes, source) and how well it then reads the text of --data, as JSON: to send along with "
        "a report of a model that others cannot run.",
    ),
)
@decoding_options(
    "Decoding (the bundle's defaults; what is not given is the default here)",
    renamed={"block_size": "--default-block"},
)
@common_options
def main(
    checkpoint: Path | None,
    output: Path | None,
    automatic: bool,
    dry_run: bool,
    as_json: bool,
    verbose: int,
    **given: Any,
) -> None:
    """Turns a CHECKPOINT into a bundle: traced, checked against PyTorch, packed.

    CHECKPOINT is a folder that dlm-train wrote, or a model as others publish it: a folder,
    owner/name on the Hugging Face hub, or of a causal one (Llama, Qwen2, Qwen3) a GGUF file. The
    diffusion models are those that dLLM made of Qwen (A2D), SDAR, Fast-dLLM v2, CoDA,
    Open-dCoder, MDLM, BD3-LM, SEDD and Duo; the blocks that they were trained on are taken from
    their files or their name, --block says them where neither does.

    With --precision int8 or int4 (and fp16, where there is text) the way goes through calibration:
    the model decodes prompts, scales are fitted to what it meets (to clean text, if those do as
    well), and the loss of the whole is held to --max-loss on text that calibration has not seen:
    the upper end of its 95 % interval over masks. On cpu and host each row takes its own scale of
    activations; fitted is what is folded into weights, which channels stay in floating point, and
    how int4 is rounded. On cpu and host a file of Q4_0, Q4_1 or Q4_K is carried over as it is. A
    report with drawings goes into the bundle and beside it.

    Decoding options become the bundle's defaults; without --rule, the first rule of the model's
    family that takes them is used. Without any of them, a model whose texts repeat themselves at
    temperature 0, and do not when drawn, gets temperature 0.8.
    """
    if given["target"] == "list":
        _list_targets(as_json, verbose)
        return
    if checkpoint is None:
        raise click.UsageError("Missing argument 'CHECKPOINT'.")
    if output is None and not dry_run:
        raise click.UsageError("Missing option '-o' / '--output'.")
    from ..train.checkpoints.hub import find_checkpoint
    from .settings import ExportSettings, check_output

    decoding = take_settings(given)
    settings = ExportSettings(
        decoding=decoding,
        choose_decoding=not decoding,
        **{name: value for name, value in given.items() if value is not None},
    )
    if output is not None:
        check_output(output, settings)
    find_checkpoint(checkpoint)
    # torch takes seconds to import: what is wrong in the command must not wait for it.
    from ..runtime.cli.progress import ProgressLine
    from .pack import export_checkpoint
    from .plans import build_if_at_hand

    def progress(line: str) -> None:
        click.echo(line, err=True)

    if output is None or dry_run:
        _forecast(checkpoint, settings, progress, as_json)
        return
    if automatic:
        report = _export_chosen(checkpoint, output, settings, progress)
    else:
        report = export_checkpoint(checkpoint, output, settings, progress)
    line = ProgressLine()
    try:
        built = build_if_at_hand(output, settings.target, line.show_share)
    finally:
        line.wipe()
    if as_json:
        print_json({**report, "tensorrt": built})
    else:
        _show_export(report, built, settings.target, verbose)


def _show_export(
    report: Mapping[str, Any], built: Mapping[str, Any], target: str, verbose: int
) -> None:
    from .checks.budget import forecast_lines

    click.echo(f"{report['bundle']}  {report['bytes'] / 2**20:.1f} MiB  sha256 {report['sha256']}")
    for graph in report["parity"].values():
        for shape in graph["shapes"]:
            figures = shape["against_torch"]
            click.echo(
                f"{shape['graph']}  {dims_text(shape['dims'])}  "
                f"largest relative error {figures['max_relative_error']:.1e}  "
                f"same top-1 {figures['top1_agreement']:.2%}"
            )
    for line in forecast_lines(report["forecast"]):
        click.echo(line)
    for plan in built["plans"]:
        click.echo(f"{plan['file']}  TensorRT plan of {plan['bytes'] / 2**20:.1f} MiB in the cache")
    if not built["plans"] and target != "cpu":  # which has no plans
        why = f" (not here: {built['why']})" if verbose else ""
        click.echo(
            f"next: dlm-run {report['bundle']} --build makes TensorRT's plans on the machine{why}"
        )
    if "quality" in report:
        quality = report["quality"]
        for line in (quality["verdict"], *quality["findings"], *quality["warnings"]):
            click.echo(line)
        click.echo(f"report: {report['report_dir']}/report.html")
    if verbose:
        for name, figures in report["graphs"].items():
            counts = ", ".join(f"{op} {number}" for op, number in figures["operators"].items())
            click.echo(f"{name}: {counts}", err=True)


if __name__ == "__main__":
    main()
