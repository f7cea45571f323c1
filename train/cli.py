"""`dlm-train`: trains a denoiser on text, resumes, or measures a checkpoint. Parses and prints."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..runtime.cli.common import (
    EXIT_INTERRUPTED,
    DlmCommand,
    common_options,
    print_json,
    refuse_together,
)
from ..runtime.errors import ConfigError
from .cli_options import TrainOption, training_options

if TYPE_CHECKING:
    from .config import TrainConfig


@click.command("dlm-train", cls=DlmCommand)
@training_options
@common_options
@click.pass_context
def main(
    ctx: click.Context,
    as_json: bool,
    verbose: int,
    resume: bool,
    evaluate: str | None,
    limit: int | None,
    block: int | None,
    threads: int | None,
    **given: Any,
) -> int:
    """Trains a diffusion language model on text, and writes a checkpoint folder.

    \b
    dlm-train --data stories.txt --size tiny --block-size 16,32,full --out run
    dlm-train --config run.yaml --max-minutes 60
    dlm-train --resume --out run
    dlm-train --evaluate run --data other.txt
    """
    refuse_together(
        {"--evaluate": evaluate is not None, "--resume": resume},
        ("--evaluate", "--resume", "one measures, the other trains"),
    )
    if evaluate is None and (limit is not None or block is not None):
        raise ConfigError("--limit and --block belong to --evaluate; training takes --block-size")
    if evaluate is not None:
        from ..runtime.measure.evaluate import eval_line

        figures = _evaluate(
            evaluate, given["data"], given["text_field"], given["seed"], limit, block, threads
        )
        if as_json:
            print_json(figures)
        else:
            click.echo(eval_line(figures))
        return 0
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    if given["max_steps"] == 0 and not resume:
        summary = _convert(ctx, given)
    else:
        config = _config(ctx, given, resume)
        from .loop.run import train

        summary = train(config, resume=resume, quiet=as_json and not verbose)
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        if as_json:
            print_json(summary)
        else:
            _print_summary(summary)
    return EXIT_INTERRUPTED if summary["status"] == "interrupted" else 0


def _config(ctx: click.Context, given: dict[str, Any], resume: bool) -> TrainConfig:
    """Makes the settings of a run; a resumed one takes what was not given from its folder."""
    from .config import SETTINGS, TrainConfig, load_settings

    out = given["out"]
    if out is None:
        raise ConfigError("--out is missing; give the folder the checkpoint goes to")
    saved = Path(out) / SETTINGS
    explicit = {name for name in given if _is_given(ctx, name)}
    family_options = _family_options(ctx, given)
    known = {item.name for item in fields(TrainConfig)}
    values = {name: value for name, value in given.items() if name in known}
    if resume and saved.is_file():
        kept = load_settings(saved)
        family_options = {**kept["options"], **family_options}
        values = {**kept, **{name: values[name] for name in explicit if name in known}}
    elif saved.is_file() and int(os.environ.get("LOCAL_RANK", "0")) == 0:
        raise ConfigError(f"{out} already holds a run; add --resume, or give another --out")
    elif given["init"] is None and not {"size", "dim", "num_layers"} & set(family_options):
        family_options["size"] = "small"
    if values["tokenizer"] is None:
        values["tokenizer"] = _tokenizer_of(given["init"]) or "bpe"
    if values["data"] is None and resume:
        raise ConfigError(
            f"--resume: {out} holds no run (train.json is missing); check --out, or start one with "
            "--data"
        )
    if values["data"] is None:
        raise ConfigError("--data is missing; give a text file, a folder or a data set name")
    config = TrainConfig(**{**values, "options": family_options})
    _check_names(config)
    return config


def _is_given(ctx: click.Context, name: str) -> bool:
    """Tells whether an option was typed, or is in the file of --config."""
    source = click.core.ParameterSource
    return ctx.get_parameter_source(name) in (source.COMMANDLINE, source.DEFAULT_MAP)


def _check_names(config: TrainConfig) -> None:
    """Finds a wrong name or path before torch is imported, which takes seconds."""
    from .data.sources import find_source

    _check_family(config.family)
    for where in filter(None, (config.data, config.valid)):
        find_source(where, config.text_field)
    if config.log == "wandb" and importlib.util.find_spec("wandb") is None:
        raise ConfigError("--log wandb needs the package wandb: pip install 'dlm-edge[wandb]'")


def _check_family(name: str) -> None:
    from ..runtime.families.table import FAMILIES

    if name not in FAMILIES:
        raise ConfigError(f"--family {name}: choose one of {', '.join(FAMILIES)}")


def _family_options(ctx: click.Context, given: dict[str, Any]) -> dict[str, Any]:
    names = [
        item.name
        for item in ctx.command.params
        if isinstance(item, TrainOption) and item.to_family and item.name is not None
    ]
    return {name: given[name] for name in names if given[name] is not None}


def _tokenizer_of(init: str | None) -> str | None:
    if init is None:
        return None
    from .checkpoints.start import tokenizer_of

    return tokenizer_of(init)


def _convert(ctx: click.Context, given: dict[str, Any]) -> dict[str, Any]:
    if given["init"] is None or given["out"] is None:
        raise ConfigError("--max-steps 0 only converts: give --init (what) and --out (where)")
    from .config import SETTINGS

    if (Path(given["out"]) / SETTINGS).exists():
        raise ConfigError(f"{given['out']} already holds a run; give another --out")
    _check_family(given["family"])
    from .checkpoints.convert import convert

    options = _family_options(ctx, given)
    context = given["context"] if _is_given(ctx, "context") else None
    return convert(given["init"], given["out"], given["family"], options, context)


def _evaluate(
    checkpoint: str,
    data: str | None,
    text_field: str,
    seed: int,
    limit: int | None,
    block: int | None,
    threads: int | None,
) -> dict[str, Any]:
    if data is None:
        raise ConfigError("--evaluate needs --data: the text to measure on")
    from ..runtime.cli.progress import bar
    from .checkpoints.hub import find_checkpoint
    from .data.sources import find_source

    find_checkpoint(checkpoint)
    find_source(data, text_field)
    from .evaluate import evaluate_checkpoint

    with bar() as show:
        return evaluate_checkpoint(
            Path(checkpoint),
            data,
            text_field=text_field,
            seed=seed,
            limit=limit,
            block_size=block,
            threads=threads,
            progress=show,
        )


def _print_summary(summary: dict[str, Any]) -> None:
    if summary["steps"]:
        click.echo(
            f"{summary['status']} after {summary['steps']} steps, "
            f"{summary['tokens_seen']:,} tokens, {summary['seconds']:.0f} s"
        )
    for name, item in summary["held_out"].items():
        block = "block " if name.isdecimal() or name == "full" else ""
        line = f"held out, {block}{name}: {item['nats_per_token']:.4f} nats/token"
        if summary.get("has_likelihood", True):
            interval = "one sequence, so no interval"
            if item["half_width"] is not None:
                ends = item["perplexity_low"], item["perplexity_high"]
                interval = f"{ends[0]:.2f} to {ends[1]:.2f} with 95 %"
            line += f", perplexity {item['perplexity']:.2f} ({interval})"
        click.echo(line)
    path = summary["checkpoint"]
    click.echo(f"checkpoint: {path}")
    best = min((item["nats_per_token"] for item in summary["held_out"].values()), default=0.0)
    if summary["status"] == "interrupted":
        click.echo(f"next: dlm-train --resume --out {path}")
    elif best >= (guess := summary.get("frequency_nats", math.inf)):
        click.echo(
            "the model has learnt nothing yet: a guess by token frequency alone has "
            f"{guess:.4f} nats/token\n"
            f"next: train longer (dlm-train --resume --out {path} with a larger --max-steps or "
            "--max-minutes), or with another --lr"
        )
    else:
        click.echo(f"next: dlm-export {path} --target cpu -o model.dlm")


if __name__ == "__main__":
    sys.exit(main())
