"""What `dlm-export` can be asked for, checked before any work."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..calibration.canvases.texts import MIN_HELD_OUT_TOKENS
from ..jetson.targets import target as find_target
from ..runtime.errors import BundleError, ConfigError
from ..runtime.families.table import read_rule

PRECISIONS = ("fp32", "fp16", "int8", "int4")
INTEGERS = ("int8", "int4")
"""Those that lose so much that it is measured, or said not to be."""
MAX_LOSS, MAX_INT4_LOSS = 0.5, 3.0
"""Per cent of perplexity that may be lost unless asked otherwise."""
ARITHMETIC: Mapping[str, str] = {
    "fp32": "float32 weights and arithmetic",
    "fp16": "weights stored as float16 and widened while loading; arithmetic in float32",
    "fp16 typed": "float16 weights and arithmetic; norm statistics, softmax and angles in float32",
    "int8": "int8 weights and integer products, each run with its own scales of activations; the "
    "rest in float32",
    "int4": "4-bit weights and integer products by groups of 32, embedding and head as in int8; "
    "the rest in float32",
    "int4 typed": "4-bit weights by groups of 128 or 64 inputs, embedding and head stored as int8; "
    "arithmetic as in fp16",
    "int8 typed": "int8 weights and activations in the linear layers; the rest in float16, norm "
    "statistics, softmax and angles in float32; ONNX Runtime's CPU provider computes in floating "
    "point on the rounded values",
}
"""By form: a precision, and whether its graphs are typed for a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """What `dlm-export` was asked for."""

    target: str = "cpu"
    """A name of `jetson.targets.TARGETS`."""
    mode: str | None = None
    """Power mode that the forecast is made for; None: the one the target boots in."""
    max_memory_mib: float | None = None
    """MiB that the bundle may take on its target; None: what the target has free."""
    precision: str = "fp32"
    """A name of PRECISIONS."""
    blocks: tuple[int | str, ...] = ()
    """Block sizes in positions, or "full" for the whole canvas; empty: the family's choice,
    usually those the checkpoint was trained on."""
    contexts: tuple[int, ...] = ()
    """Context buckets in positions, of families with a cache; empty: the family's choice."""
    batch: int = 1
    """Texts that may share a run: every shape is offered for so many, too; 1: for one alone."""
    data: Path | None = None
    """Text to check and measure with; None: a paragraph that ships with the exporter to check
    parity, and a part of the calibration text to measure losses."""
    card: Path | None = None
    """Markdown that goes into the card as it is."""
    decoding: Mapping[str, Any] = field(default_factory=dict)
    """Default decoding settings of the bundle. Without a rule, the family's first rule that takes
    them."""
    choose_decoding: bool = False
    """Whether the default temperature is chosen by what the model writes."""
    calibration_data: Path | None = None
    """Text of the kind that the model will write; None: what training was validated on, if it is
    still there."""
    uncalibrated: bool = False
    """int8 or int4 without text: weights are rounded, and nothing is measured."""
    max_loss: float | None = None
    """Per cent of perplexity that fp16, int8 or int4 may cost; None: MAX_LOSS, of int4
    MAX_INT4_LOSS."""
    loss_tokens: int = 8192
    """Held-out tokens to measure losses on, at most."""
    recipe: Path | None = None
    """An edited recipe.json; None: all is decided from measurements."""
    force: bool = False
    """Writes a bundle that is beyond its budget, too."""
    judge: Path | None = None
    """A bundle that reads samples; None: their likelihood is not measured."""
    report_dir: Path | None = None
    """Folder for report.json, report.html and recipe.json; None: beside the bundle, named after
    it."""
    tokenizer: str | None = None
    """File, folder or hub name of the tokenizer of a checkpoint that has none."""
    import_report: Path | None = None
    """File for what was understood of the checkpoint, as JSON; None: it is not written."""
    canvases: Path | None = None
    """File that recorded canvases are read from, or written to if it is not there."""
    seed: int = 0
    """Of the masks that parity and losses are measured under, and of calibration."""

    def __post_init__(self) -> None:
        find_target(self.target).mode(self.mode)
        if self.precision not in PRECISIONS:
            raise ConfigError(
                f"--precision {self.precision} is unknown: choose "
                f"{', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}"
            )
        if not 0 < self.budget <= 100:
            raise ConfigError(
                f"--max-loss must be more than 0 and at most 100 per cent, not {self.budget:g}"
            )
        if self.loss_tokens < MIN_HELD_OUT_TOKENS:
            raise ConfigError(
                f"--loss-tokens must be at least {MIN_HELD_OUT_TOKENS}, not {self.loss_tokens}"
            )
        if self.seed < 0:
            raise ConfigError(f"--seed must be 0 or more, not {self.seed}")
        for option, value in (
            ("--recipe", self.recipe),
            ("--force", self.force),
            ("--canvases", self.canvases),
        ):
            if value and self.precision == "fp32":
                raise ConfigError(f"{option} has no meaning with --precision fp32: leave it out")
        if self.uncalibrated and self.precision not in INTEGERS:
            raise ConfigError("--uncalibrated is about --precision int8 and int4: leave it out")
        if self.uncalibrated and (self.calibration_data or self.recipe):
            raise ConfigError(
                "--uncalibrated takes no --calibration-data and no --recipe: leave one side out"
            )
        if "rule" in self.decoding:
            read_rule(self.decoding)

    @property
    def budget(self) -> float:
        """Per cent of perplexity that may be lost."""
        if self.max_loss is not None:
            return self.max_loss
        return MAX_INT4_LOSS if self.precision == "int4" else MAX_LOSS

    @property
    def needs_text(self) -> bool:
        """Whether nothing can be made without a text to calibrate on."""
        return not self.uncalibrated and (self.precision in INTEGERS or self.recipe is not None)

    @property
    def form(self) -> str:
        """Key of ARITHMETIC and of parity's tolerances."""
        typed = self.precision != "fp32" and find_target(self.target).is_gpu
        return f"{self.precision} typed" if typed else self.precision


def check_output(output: Path, settings: ExportSettings) -> None:
    """Finds out before minutes of work that something could not be written."""
    folder = output.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or output.is_dir():
        raise BundleError(
            f"cannot write {output}: its folder is missing or not writable, or it is a folder; "
            "choose another -o"
        )
    if output.suffix != ".dlm":
        raise ConfigError(f"-o {output} must end in .dlm, by which dlm-run knows a bundle")
    files = {"--canvases": settings.canvases, "--report-import": settings.import_report}
    for option, file in files.items():
        if file is not None and (file.is_dir() or not os.access(file.parent, os.W_OK)):
            raise ConfigError(
                f"cannot write {file}: its folder is missing or not writable, or it is a folder; "
                f"choose another {option}"
            )
    report_dir = settings.report_dir
    if report_dir is not None:
        there = next(place for place in (report_dir.absolute() / "-").parents if place.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise ConfigError(
                f"cannot write the report into {report_dir}: {there} is no folder or not writable; "
                "choose another --report-dir"
            )
