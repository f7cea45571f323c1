"""`dlm-train`: trains a denoiser on text, resumes, or measures a checkpoint. Parses and prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from ..runtime.cli_common import (
    EXIT_INTERRUPTED,
    DlmCommand,
    common_options,
    print_json,
    refuse_together,
)
from ..runtime.errors import ConfigError

_Function = TypeVar("_Function", bound=Callable[..., Any])

FAMILY_OPTIONS = (
    "size",
    "dim",
    "num_layers",
    "num_heads",
    "tie_embeddings",
    "dropout",
    "block_sizes",
    "noise_schedule",
    "t_min",
    "t_max",
    "time_conditioning",
)
"""Parameters that go to the family as they are; the others are fields of TrainConfig."""


class GroupedCommand(DlmCommand):
    """A command whose help lists the options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes one section per group, in the order of declaration."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                name = getattr(parameter, "group", "Other")
                sections.setdefault(name, []).append(record)
        for name, records in sections.items():
            with formatter.section(name):
                formatter.write_dl(records)


class GroupedOption(click.Option):
    """An option that knows its heading."""

    def __init__(self, *args: Any, group: str = "Other", **kwargs: Any) -> None:
        self.group = group
        super().__init__(*args, **kwargs)


def options(group: str, *declared: tuple[tuple[str, ...], dict[str, Any]]) -> Any:
    """Adds several options under one heading."""

    def decorate(function: _Function) -> _Function:
        for names, settings in reversed(declared):
            settings = {"show_default": True, **settings}
            function = click.option(*names, cls=GroupedOption, group=group, **settings)(function)
        return function

    return decorate


def _o(*names: str, **settings: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    return names, settings


@click.command("dlm-train", cls=GroupedCommand)
@options(
    "What to train",
    _o("--family", default="mdlm", help="mdlm (masked and block diffusion) or ar (causal)."),
    _o("--size", help="Preset: tiny, small, medium or large; small if no shape is given."),
    _o("--dim", type=int, help="Width; with --layers it replaces --size."),
    _o("--layers", "num_layers", type=int, help="Number of layers."),
    _o("--heads", "num_heads", type=int, help="Attention heads; default: width / 64."),
    _o("--tie-embeddings/--no-tie-embeddings", default=None, help="Head = embedding matrix."),
    _o("--dropout", type=float, help="Share of each branch's values dropped."),
    _o("--init", type=click.Path(), help="Checkpoint whose weights to start from."),
)
@options(
    "Objective (mdlm)",
    _o(
        "--block-size",
        "block_sizes",
        help="Block sizes trained on, with weights if wanted: "
        "16:1,32:2,full:1. full = the whole context (MDLM), the default.",
    ),
    _o("--noise-schedule", help="loglinear (default), linear, cosine or geometric."),
    _o("--t-min", type=float, help="Smallest diffusion time in training, 0 to 1."),
    _o("--t-max", type=float, help="Largest diffusion time in training, 0 to 1."),
    _o("--time-conditioning", is_flag=True, default=None, help="Feed the time (adaLN-zero)."),
)
@options(
    "Data",
    _o("--data", help=".txt, .jsonl, .parquet, a folder of them, or a data set name (hf:NAME)."),
    _o("--valid", help="Held-out text; default: a share of --data."),
    _o("--valid-percent", type=float, default=2.0, help="Documents held out, in percent."),
    _o("--text-field", default="text", help="Field or column that holds the text."),
    _o("--tokenizer", default="bpe", help="bpe, char, or the path of a tokenizer.json."),
    _o("--vocab-size", type=int, default=8192, help="Size of a trained BPE."),
    _o("--context", type=int, default=256, help="Tokens of a training sequence."),
    _o("--cache-dir", type=click.Path(), help="Folder of prepared data; default: user's cache."),
)
@options(
    "Run",
    _o("--out", type=click.Path(), help="Folder of the checkpoint."),
    _o("--max-steps", type=int, help="Optimiser steps; 5000 if no limit is given."),
    _o(
        "--max-minutes",
        type=float,
        help="Wall-clock minutes; the learning rate anneals to meet "
        "them, so resuming is then not bit-identical.",
    ),
    _o("--batch-size", type=int, default=32, help="Sequences of a step, over all devices."),
    _o("--accumulate", type=int, default=1, help="Passes per step on each device."),
    _o("--seed", type=int, default=0, help="Of weights, batches and noise."),
    _o("--resume", is_flag=True, help="Continue the run in --out; settings not given are its."),
    _o("--eval-every", type=int, default=500, help="Steps between evaluations; 0: at the end."),
    _o("--eval-rows", type=int, default=128, help="Held-out sequences per evaluation."),
    _o(
        "--patience",
        type=int,
        default=0,
        help="Stop after so many evaluations without a new best; 0: never.",
    ),
    _o("--save-every", type=int, default=1000, help="Steps between saves; 0: never."),
    _o("--save-minutes", type=float, default=10.0, help="Minutes between saves; 0: never."),
    _o(
        "--log",
        type=click.Choice(["tensorboard", "wandb", "none"]),
        default="tensorboard",
        help="Where curves go.",
    ),
)
@options(
    "Optimiser",
    _o(
        "--optimizer",
        type=click.Choice(["muon", "adamw"]),
        default="muon",
        help="muon: hidden matrices by Muon, the rest by AdamW.",
    ),
    _o("--lr", type=float, default=2e-3, help="Peak learning rate."),
    _o("--adamw-lr", type=float, help="Peak rate of embeddings, head, norms; default: --lr."),
    _o("--beta1", type=float, default=0.9, help="AdamW."),
    _o("--beta2", type=float, default=0.95, help="AdamW."),
    _o("--weight-decay", type=float, default=0.1, help="On matrices."),
    _o("--warmup-steps", type=int, default=100, help="Steps of linear rise."),
    _o("--min-lr-ratio", type=float, default=0.1, help="Final over peak learning rate."),
    _o("--clip-norm", type=float, default=1.0, help="Largest gradient norm; 0: no clipping."),
    _o("--ema", type=float, default=0.9999, help="Decay of the weights' average; 0: none."),
)
@options(
    "Machine",
    _o(
        "--precision",
        type=click.Choice(["bf16", "fp16", "fp32"]),
        default="fp32",
        help="Of the computation; weights stay fp32.",
    ),
    _o(
        "--accelerator",
        type=click.Choice(["auto", "cpu", "cuda", "mps"]),
        default="auto",
        help="Kind of device.",
    ),
    _o("--devices", type=int, default=1, help="Number of devices or CPU processes."),
    _o(
        "--strategy",
        type=click.Choice(["auto", "ddp", "fsdp"]),
        default="auto",
        help="How several devices share the work.",
    ),
    _o("--threads", type=int, help="CPU threads per process; default: torch's choice."),
    _o("--compile", is_flag=True, help="Compile the layers (torch.compile)."),
)
@options(
    "Measure instead of training",
    _o("--evaluate", type=click.Path(), help="Checkpoint whose bound on --data to measure."),
    _o("--limit", type=int, help="With --evaluate: at most so many documents."),
)
@common_options
@click.pass_context
def main(
    ctx: click.Context,
    as_json: bool,
    verbose: int,
    resume: bool,
    evaluate: str | None,
    limit: int | None,
    threads: int | None,
    **given: Any,
) -> int:
    """Trains a diffusion language model on text, and writes a checkpoint folder.

    \b
    dlm-train --data stories.txt --size tiny --block-size 16,32,full --out run
    dlm-train --resume --out run
    dlm-train --evaluate run --data other.txt
    """
    refuse_together(
        {"--evaluate": evaluate is not None, "--resume": resume},
        ("--evaluate", "--resume", "one measures, the other trains"),
    )
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    if evaluate is not None:
        return _evaluate(evaluate, given["data"], given["seed"], limit, as_json)
    config = _config(ctx, given, resume)
    from .run import train

    summary = train(config, resume=resume, quiet=as_json and not verbose)
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        if as_json:
            print_json(summary)
        else:
            _print_summary(summary)
    return EXIT_INTERRUPTED if summary["status"] == "interrupted" else 0


def _config(ctx: click.Context, given: dict[str, Any], resume: bool) -> Any:
    """Makes the settings of a run; a resumed one takes what was not given from its folder."""
    from .config import TrainConfig, load_settings

    out = given["out"]
    if out is None:
        raise ConfigError("--out is missing; give the folder the checkpoint goes to")
    saved = Path(out) / "train.json"
    explicit = {
        name
        for name in given
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    family_options = {name: given[name] for name in FAMILY_OPTIONS if given[name] is not None}
    known = {item.name for item in fields(TrainConfig)}
    values = {name: value for name, value in given.items() if name in known}
    if resume and saved.is_file():
        kept = load_settings(saved)
        family_options = {**kept["options"], **family_options}
        values = {**kept, **{name: values[name] for name in explicit if name in known}}
    elif saved.is_file() and int(os.environ.get("LOCAL_RANK", "0")) == 0:
        raise ConfigError(f"{out} already holds a run; add --resume, or give another --out")
    elif not {"size", "dim", "num_layers"} & set(family_options):
        family_options["size"] = "small"
    if values["data"] is None:
        raise ConfigError("--data is missing; give a text file, a folder or a data set name")
    return TrainConfig(**{**values, "options": family_options})


def _evaluate(
    checkpoint: str, data: str | None, seed: int, limit: int | None, as_json: bool
) -> int:
    if data is None:
        raise ConfigError("--evaluate needs --data: the text to measure on")
    from .evaluate import evaluate_checkpoint

    figures = evaluate_checkpoint(Path(checkpoint), Path(data), seed=seed, limit=limit)
    if as_json:
        print_json(figures)
    else:
        for name, value in figures.items():
            click.echo(f"{name}: {value}")
    return 0


def _print_summary(summary: dict[str, Any]) -> None:
    click.echo(
        f"{summary['status']} after {summary['steps']} steps, "
        f"{summary['tokens_seen']:,} tokens, {summary['seconds']:.0f} s"
    )
    for name, item in summary["held_out"].items():
        click.echo(
            f"held out, block {name}: {item['nats_per_token']:.4f} ± {item['half_width']:.4f} "
            f"nats/token, perplexity {item['perplexity']:.2f} "
            f"({item['perplexity_low']:.2f} to {item['perplexity_high']:.2f})"
        )
    path = summary["checkpoint"]
    click.echo(f"checkpoint: {path}")
    if summary["status"] == "interrupted":
        click.echo(f"next: dlm-train --resume --out {path}")
    else:
        click.echo(f"next: dlm-export {path} --target cpu -o model.dlm")


if __name__ == "__main__":
    sys.exit(main())
