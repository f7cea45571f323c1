"""Settings of a training run: what `dlm-train` takes, checked, and saved beside what it made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..runtime.errors import CheckpointError, ConfigError, brief
from ..runtime.files import parse_json
from .files import write_text

PRECISIONS: Mapping[str, str] = {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}
"""What `--precision` means to Fabric; the weights themselves stay float32."""

STRATEGIES = ("auto", "ddp", "fsdp")
LOGS = ("tensorboard", "wandb", "none")
SETTINGS = "train.json"
"""File of a run's folder that holds its settings."""

DEFAULT_CONTEXT = 256

FIXED, SAME_TOKENS, FROM_HERE = "fixed", "same tokens", "from here on"
_NAMES = {
    FIXED: "family options context batch_size seed init optimizer lora lora_scale eval_rows",
    SAME_TOKENS: "data valid valid_percent text_field tokenizer vocab_size",
    FROM_HERE: "max_steps max_minutes lr adamw_lr beta1 beta2 weight_decay warmup_steps "
    "min_lr_ratio clip_norm ema precision accelerator devices strategy accumulate compile "
    "recompute eval_every patience save_every save_minutes log samples out cache_dir",
}
ON_RESUME = {name: rule for rule, names in _NAMES.items() for name in names.split()}
"""What `--resume` does with a setting of another value.

"fixed": part of what the run is; refused. "same tokens": may be given anew, if the same token ids
come of it. "from here on": applies to the steps that follow.
"""

DEFAULT_STEPS = 5000
"""Length of a run that gives neither steps nor minutes."""


OPTIONS: Mapping[str, str] = {
    "num_layers": "--layers",
    "num_heads": "--heads",
    "num_kv_heads": "--kv-heads",
    "block_sizes": "--block-size",
}
"""Options that are not called like the setting."""


def option_of(name: str) -> str:
    """Returns the option that sets a setting of TrainConfig or of a family: "--block-size"."""
    return OPTIONS.get(name, "--" + name.replace("_", "-"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One training run."""

    family: str
    """Name in the table of families."""
    out: str
    """Folder of the checkpoint."""
    data: str
    """Training text: file, folder or data set name."""
    valid: str | None = None
    """Held-out text; None splits some off."""
    valid_percent: float = 2.0
    """Share of documents held out when `valid` is None, in percent."""
    text_field: str = "text"
    """Field of `.jsonl`, `.parquet` and hub data that holds the text."""
    tokenizer: str = "bpe"
    """"bpe", "char" or the path of a tokenizer.json."""
    vocab_size: int = 8192
    """Vocabulary of a trained BPE, special tokens included."""
    cache_dir: str | None = None
    """Folder of prepared data; None is the user's cache folder."""
    options: dict[str, Any] = field(default_factory=dict)
    """What the family is given: size, shape, block sizes, …"""
    context: int = DEFAULT_CONTEXT
    """Tokens of a training sequence."""
    batch_size: int = 32
    """Sequences of an optimiser step, over all devices and accumulation steps."""
    accumulate: int = 1
    """Forward and backward passes that make up one optimiser step on a device."""
    max_steps: int | None = None
    """Optimiser steps of the run."""
    max_minutes: float | None = None
    """Wall-clock minutes of training, evaluation and saving included, over all resumptions."""
    seed: int = 0
    """Of weights, batches and noise."""
    optimizer: str = "muon"
    lr: float = 3e-3
    """Peak learning rate."""
    adamw_lr: float | None = None
    """Peak learning rate of embeddings, head and norms; None takes `lr`."""
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    """On matrices only."""
    warmup_steps: int = 100
    min_lr_ratio: float = 0.1
    """Learning rate at the end over the peak."""
    clip_norm: float = 1.0
    """Largest gradient norm; 0 disables clipping."""
    ema: float = 0.9999
    """Decay of the moving average of the weights; 0 disables it."""
    precision: str = "fp32"
    accelerator: str = "auto"
    """"auto", "cpu", "cuda" or "mps"."""
    devices: int = 1
    strategy: str = "auto"
    compile: bool = False
    """Whether torch.compile is applied to the layers."""
    recompute: bool = False
    """Whether layers are computed again in the backward pass, to keep less of them."""
    init: str | None = None
    """Checkpoint whose weights the run starts from."""
    lora: int | None = None
    """Rank of the adapters that are trained in place of all weights; None: all weights."""
    lora_scale: float = 2.0
    """How many times the adapters' product is added."""
    eval_every: int = 500
    """Optimiser steps between held-out evaluations; 0: only at the end."""
    eval_rows: int = 128
    """Held-out sequences per evaluation."""
    patience: int = 0
    """Evaluations without improvement after which the run stops; 0 disables."""
    save_every: int = 1000
    """Optimiser steps between saved states; 0 disables."""
    save_minutes: float = 10.0
    """Minutes between saved states; 0 disables."""
    log: str = "tensorboard"
    samples: int = 2
    """Texts that each evaluation draws for the log; 0: none."""

    def __post_init__(self) -> None:
        self._check_ranges()
        for name, allowed in (
            ("optimizer", ("muon", "adamw")),
            ("precision", tuple(PRECISIONS)),
            ("strategy", STRATEGIES),
            ("log", LOGS),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{option_of(name)} {getattr(self, name)}: choose one of {', '.join(allowed)}"
                )
        if self.batch_size % (self.devices * self.accumulate):
            raise ConfigError(
                f"--batch-size {self.batch_size} must be a multiple of --devices x --accumulate = "
                f"{self.devices} x {self.accumulate}"
            )
        if self.strategy != "auto" and self.devices == 1:
            raise ConfigError(f"--strategy {self.strategy} needs --devices 2 or more")
        if self.lora is not None:
            self._check_lora()
        if self.strategy == "fsdp" and self.precision == "fp16":
            raise ConfigError("--precision fp16 is not possible with fsdp; use bf16")
        if self.strategy == "fsdp" and self.optimizer == "muon":
            raise ConfigError(
                "--optimizer muon needs whole matrices, which fsdp splits; use adamw or ddp"
            )

    def _check_lora(self) -> None:
        if self.lora is None or self.lora < 1 or not self.lora_scale > 0:
            raise ConfigError(
                f"--lora {self.lora} must be at least 1, --lora-scale {self.lora_scale} above 0"
            )
        if self.init is None:
            raise ConfigError("--lora trains a little beside given weights; give them with --init")
        if self.optimizer == "muon":
            raise ConfigError(
                "--optimizer muon orthogonalises whole matrices, not LoRA's factors; use adamw"
            )

    def _check_ranges(self) -> None:
        positive = ("context", "batch_size", "accumulate", "devices", "lr", "vocab_size")
        for name in (*positive, "eval_rows"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{option_of(name)} must be above 0, not {getattr(self, name)}")
        for name in ("max_steps", "max_minutes", "adamw_lr"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{option_of(name)} must be above 0, not {value}")
        for name in (
            "warmup_steps",
            "clip_norm",
            "weight_decay",
            "eval_every",
            "patience",
            "save_every",
            "save_minutes",
            "samples",
            "seed",
        ):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{option_of(name)} must not be negative: {getattr(self, name)}")
        for name in ("beta1", "beta2", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{option_of(name)} must be in [0, 1), not {getattr(self, name)}")
        if not 0 <= self.min_lr_ratio <= 1:
            raise ConfigError(f"--min-lr-ratio must be in [0, 1], not {self.min_lr_ratio}")
        if not 0 < self.valid_percent < 100:
            raise ConfigError(f"--valid-percent must be in (0, 100), not {self.valid_percent}")
        if self.context < 2:
            raise ConfigError(f"--context must be at least 2 tokens, not {self.context}")

    @property
    def num_steps(self) -> int | None:
        """Steps after which the run ends; None if only time ends it."""
        if self.max_steps is None and self.max_minutes is None:
            return DEFAULT_STEPS
        return self.max_steps

    def to_json(self) -> dict[str, Any]:
        """Returns the settings as a JSON object."""
        return asdict(self)


def save_config(config: TrainConfig, path: Path) -> None:
    """Writes the resolved settings."""
    write_text(path, json.dumps(config.to_json(), indent=2) + "\n")


def changed_settings(kept: Mapping[str, Any], config: TrainConfig) -> list[str]:
    """Compares the settings of a resumed run with those that it was started with.

    Returns:
        The settings that change from here on: "--lr 0.001 (before: 0.003)".

    Raises:
        ConfigError: A setting that is part of what the run is has another value.
    """
    new = config.to_json()
    options = {name: kept["options"].get(name) for name in config.options}
    pairs = [(name, kept.get(name), new[name]) for name in ON_RESUME if name != "options"]
    pairs += [(name, options[name], value) for name, value in config.options.items()]
    later = []
    for name, before, now in pairs:
        rule = ON_RESUME.get(name, FIXED)
        if before == now or rule == SAME_TOKENS or name in ("out", "cache_dir"):
            continue
        option = option_of(name)
        if rule == FIXED:
            raise ConfigError(
                f"--resume: the run in {config.out} has {option} {before}, not {now}; leave it "
                f"out, or start a new run from these weights: --init {config.out} with another "
                "--out"
            )
        later.append(f"{option} {now} (before: {before})")
    return later


def load_settings(path: Path) -> dict[str, Any]:
    """Reads settings that `save_config` wrote, as keyword arguments of TrainConfig.

    Raises:
        CheckpointError: if the file is damaged or has keys of another version.
    """
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({brief(error, 200)}); start a new run"
        ) from error
    known = {item.name for item in fields(TrainConfig)}
    if not isinstance(values, dict) or set(values) - known:
        raise CheckpointError(f"{path}: written by another version; start a new run")
    return values
