"""The options of `dlm-train`, under their headings. Knows neither torch nor any family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from typing import Any, TypeVar

import click

from ..runtime.cli.common import Section, grouped
from ..runtime.errors import brief
from .config import LOGS, PRECISIONS, STRATEGIES, TrainConfig, option_of
from .nn.config import BACKBONES

_Function = TypeVar("_Function", bound=Callable[..., Any])


class TrainOption(click.Option):
    """An option that knows whether it is the family's."""

    def __init__(self, *args: Any, to_family: bool = False, **kwargs: Any) -> None:
        self.to_family = to_family
        super().__init__(*args, **kwargs)


DEFAULTS: Mapping[str, Any] = {
    item.name: item.default for item in fields(TrainConfig) if item.default is not MISSING
}


def _o(*names: str, **settings: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Declares a setting of TrainConfig with its default, or what the command itself reads."""
    name = str(click.Option(names).name)
    own = {"default": DEFAULTS[name]} if name in DEFAULTS else {}
    return names, {**own, **settings}


def _family(*names: str, **settings: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Declares an option that goes to the family as it is; None counts as not given."""
    return names, {"default": None, "to_family": True, **settings}


def read_settings(ctx: click.Context, parameter: click.Parameter, path: str | None) -> None:
    """Makes the options of a YAML file the command's defaults; what is typed goes before them.

    Raises:
        UsageError: It is no mapping of options to single values, or names an unknown one.
    """
    if path is None:
        return
    import yaml  # slow to import

    try:
        with open(path, encoding="utf-8") as file:
            found = yaml.safe_load(file)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise click.UsageError(f"--config {path} cannot be read ({brief(error, 200)})") from error
    if not isinstance(found, dict):
        raise click.UsageError(
            f"--config {path}: wanted lines such as family: mdlm, found {found!r:.60}"
        )
    named = {
        option.lstrip("-"): item
        for item in ctx.command.params
        if item is not parameter
        for option in (*item.opts, *item.secondary_opts)
        if option.startswith("--")
    }
    values: dict[str, Any] = {}
    for key, value in found.items():
        name = str(key).replace("_", "-")
        if name not in named:
            near = get_close_matches(name, named, n=1)
            hint = f"did you mean {near[0]}?" if near else "--help lists them"
            raise click.UsageError(f"--config {path}: {key} is no option of dlm-train; {hint}")
        if isinstance(value, list):
            value = ",".join(map(str, value))
        if isinstance(value, dict):
            raise click.UsageError(f"--config {path}: {key} must be a single value, not a mapping")
        item = named[name]
        if f"--{name}" in item.secondary_opts:
            value = not value
        values[str(item.name)] = value
    ctx.default_map = values


GROUPS = (
    (
        "What to train",
        _o(
            "--family",
            default="mdlm",
            help="mdlm (masked and block diffusion), ar (causal), sedd (score entropy), tidar "
            "(drafts by diffusion, verifies causally) or dimba (diffusion on embeddings, Mamba-2).",
        ),
        _family(
            "--backbone",
            type=click.Choice(tuple(BACKBONES)),
            help="native (default), or a public architecture, whose checkpoints are folders in "
            "Hugging Face's format. --init brings its own.",
        ),
        _family(
            "--size",
            help="Preset: tiny, small, medium or large; small if no shape is given. sedd also has "
            "char: 640 x 10, for characters.",
        ),
        _family("--dim", type=int, help="Width; with --layers it replaces --size."),
        _family(option_of("num_layers"), "num_layers", type=int, help="Number of layers."),
        _family(
            option_of("num_heads"),
            "num_heads",
            type=int,
            help="Attention heads; default: width / 64.",
        ),
        _family(
            option_of("num_kv_heads"),
            "num_kv_heads",
            type=int,
            help="Heads of keys and values, a divisor of --heads; default: --heads.",
        ),
        _family("--hidden-dim", type=int, help="Width of the gated MLP; default: 2.75 x width."),
        _family("--tie-embeddings/--no-tie-embeddings", help="Head = embedding matrix."),
        _family("--dropout", type=float, help="Share of each branch's values dropped."),
        _o(
            "--init",
            type=click.Path(),
            help="Checkpoint (folder, hub name or GGUF file) to start from: one of dlm-train, or "
            "Llama, Qwen2 or Qwen3 of Hugging Face or in GGUF. Shape and tokenizer are its. "
            "With --max-steps 0 it is only converted. dimba: a mamba_ssm folder, whose layers it "
            "takes.",
        ),
    ),
    (
        "Objective (diffusion families)",
        _family(
            option_of("block_sizes"),
            "block_sizes",
            help="Block sizes trained on, with weights if wanted: "
            "16:1,32:2,full:1. full = the whole context (MDLM), the default. sedd: the lengths of "
            "its canvas. tidar: the numbers of tokens drafted at once, 8 by default.",
        ),
        _family(
            "--alpha",
            type=float,
            help="tidar: weight of the causal loss beside the drafts' 1; default 1.",
        ),
        _family(
            "--noise-schedule",
            "--noise",
            "noise_schedule",
            help="loglinear, linear, cosine or geometric. Default: loglinear; geometric for the "
            "uniform graph of sedd.",
        ),
        _family(
            "--masking",
            help="independent (default: each position by itself) or count (so many of a block: "
            "the same bound with less variance).",
        ),
        _family("--t-min", type=float, help="mdlm: smallest diffusion time in training, 0 to 1."),
        _family("--t-max", type=float, help="mdlm: largest diffusion time in training, 0 to 1."),
        _family("--time-conditioning", is_flag=True, help="mdlm: feed the time (adaLN-zero)."),
        _family(
            "--graph",
            help="sedd: absorb (noise masks tokens; default) or uniform (noise replaces them, so "
            "that early tokens are corrected later).",
        ),
        _family("--sigma-min", type=float, help="sedd, geometric: least noise; default 1e-4."),
        _family("--sigma-max", type=float, help="sedd, geometric: most noise; default 20."),
        _family("--condition-dim", type=int, help="sedd: width of the noise's condition vector."),
        _family("--state-size", type=int, help="dimba: numbers in a channel's state; default 64."),
        _family("--expand", type=int, help="dimba: channels of a mixer over the width; default 2."),
        _family(
            "--conditioning",
            help="dimba: how layers see the time: adaln (default), film or add.",
        ),
        _family("--latent-dim", type=int, help="dimba: width of embeddings; default: width / 8."),
        _family("--prediction", help="dimba: what the network gives: x0 (default) or v."),
        _family("--noise-steps", type=int, help="dimba: noise levels of training; default 1000."),
        _family("--zero-snr", is_flag=True, help="dimba: the last noise level keeps no signal."),
        _family("--min-snr", type=float, help="dimba: most that a latent's error weighs; 5."),
        _family(
            "--rounding-weight", type=float, help="dimba: weight of rounding to tokens; default 1."
        ),
        _family(
            "--self-conditioning",
            type=float,
            help="dimba: share of texts that see a first estimate; default 0.5; 0: none ever.",
        ),
        _family(
            "--condition-dropout",
            type=float,
            help="dimba: share of texts whose prompt is hidden, which guidance needs; default 0.1.",
        ),
        _family(
            "--prompt-encoder", is_flag=True, help="dimba: feed the prompt's mean to all layers."
        ),
    ),
    (
        "Data",
        _o(
            "--data", help=".txt, .jsonl, .parquet, a folder of them, or a data set name (hf:NAME)."
        ),
        _o("--valid", help="Held-out text; default: a share of --data."),
        _o("--valid-percent", type=float, help="Documents held out, in percent."),
        _o("--text-field", help="Field or column that holds the text."),
        _o(
            "--tokenizer",
            default=None,
            help="bpe (default; with --init that checkpoint's own), char, or the path of a "
            "tokenizer.json.",
        ),
        _o("--vocab-size", type=int, help="Size of a trained BPE."),
        _o("--context", type=int, help="Tokens of a training sequence."),
        _o(
            "--cache-dir", type=click.Path(), help="Folder of prepared data; default: user's cache."
        ),
    ),
    (
        "Run",
        _o("--out", type=click.Path(), help="Folder of the checkpoint."),
        _o(
            "--max-steps",
            type=int,
            help="Optimiser steps; 5000 if no limit is given. 0: write --init as a checkpoint of "
            "--family and stop.",
        ),
        _o(
            "--max-minutes",
            type=float,
            help="Wall-clock minutes over all resumptions, evaluation and saving included; the "
            "learning rate anneals to meet them, so resuming is then not bit-identical.",
        ),
        _o("--batch-size", type=int, help="Sequences of a step, over all devices."),
        _o("--accumulate", type=int, help="Passes per step on each device."),
        _o("--seed", type=int, help="Of weights, batches and noise."),
        _o("--resume", is_flag=True, help="Continue the run in --out; settings not given are its."),
        _o("--eval-every", type=int, help="Steps between evaluations; 0: at the end."),
        _o("--eval-rows", type=int, help="Held-out sequences per evaluation."),
        _o(
            "--patience",
            type=int,
            help="Stop after so many evaluations without a new best; 0: never.",
        ),
        _o("--save-every", type=int, help="Steps between saves; 0: never."),
        _o("--save-minutes", type=float, help="Minutes between saves; 0: never."),
        _o("--log", type=click.Choice(LOGS), help="Where curves and sampled texts go."),
        _o("--samples", type=int, help="Texts drawn at each evaluation, for the log; 0: none."),
    ),
    (
        "Optimiser",
        _o(
            "--optimizer",
            type=click.Choice(["muon", "adamw"]),
            help="muon: hidden matrices by Muon, the rest by AdamW.",
        ),
        _o("--lr", type=float, help="Peak learning rate."),
        _o("--adamw-lr", type=float, help="Peak rate of embeddings, head, norms; default: --lr."),
        _o("--beta1", type=float, help="AdamW."),
        _o("--beta2", type=float, help="AdamW."),
        _o("--weight-decay", type=float, help="On matrices."),
        _o("--warmup-steps", type=int, help="Steps of linear rise; a tenth of the run at most."),
        _o("--min-lr-ratio", type=float, help="Final over peak learning rate."),
        _o("--clip-norm", type=float, help="Largest gradient norm; 0: no clipping."),
        _o("--ema", type=float, help="Decay of the weights' average; 0: none."),
    ),
    (
        "Machine",
        _o(
            "--precision",
            type=click.Choice(list(PRECISIONS)),
            help="Of the computation; weights stay fp32.",
        ),
        _o(
            "--accelerator",
            type=click.Choice(["auto", "cpu", "cuda", "mps"]),
            help="Kind of device.",
        ),
        _o("--devices", type=int, help="Number of devices or CPU processes."),
        _o("--strategy", type=click.Choice(STRATEGIES), help="How several devices share the work."),
        _o(
            "--threads",
            type=int,
            help="CPU threads per process; default: torch's choice; of --evaluate, idle cores.",
        ),
        _o("--compile", is_flag=True, help="Compile the layers (torch.compile)."),
        _o(
            "--recompute",
            is_flag=True,
            help="Compute each layer again in the backward pass (gradient checkpointing): much "
            "less memory for a third more time.",
        ),
        _o(
            "--lora",
            type=int,
            help="Train adapters of this rank (and the mask's row) beside the frozen weights of "
            "--init, in bf16 if --precision is; the checkpoint has them merged. Needs peft and "
            "--optimizer adamw.",
        ),
        _o("--lora-scale", type=float, help="How many times they are added."),
    ),
    (
        "Measure instead of training",
        _o(
            "--evaluate",
            type=click.Path(),
            help="Checkpoint (folder or hub name) whose bound on --data to measure.",
        ),
        _o("--limit", type=click.IntRange(min=1), help="At most so many documents."),
        _o(
            "--block",
            type=click.IntRange(min=1),
            help="Positions denoised together; default: "
            "the largest block size trained on, below the whole canvas.",
        ),
    ),
)
"""Heading, then its options: names and click's settings."""


def training_options(function: _Function) -> _Function:
    """Adds all options, in the order of `GROUPS`."""
    for title, *declared in reversed(GROUPS):
        options = (click.option(*names, cls=TrainOption, **rest) for names, rest in declared)
        function = grouped(Section(title), *options)(function)
    file = click.option(
        "--config",
        type=click.Path(dir_okay=False),
        is_eager=True,
        expose_value=False,
        callback=read_settings,
        help="YAML file of options, a line each (family: mdlm); typed ones go before it.",
    )
    return grouped(Section("Settings from a file"), file)(function)
