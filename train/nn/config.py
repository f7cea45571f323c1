"""Shape of a denoiser, its presets, and the checks on both. Knows no objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ...runtime.errors import ConfigError

HEAD_DIM = 64

PRESETS: Mapping[str, Mapping[str, int]] = {
    "tiny": {"dim": 256, "num_layers": 4},  # 7.4 M at vocabulary 8,192, untied
    "small": {"dim": 384, "num_layers": 6},  # 17.1 M
    "medium": {"dim": 512, "num_layers": 8},  # 34.1 M
    "large": {"dim": 640, "num_layers": 10},  # 60.7 M
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shape of one denoiser."""

    vocab_size: int
    """Tokens, special ones included."""
    dim: int
    """Width of the residual stream."""
    num_layers: int
    num_heads: int
    num_kv_heads: int
    """Equal to num_heads in the native backbone."""
    head_dim: int
    hidden_dim: int
    """Width of the gated MLP."""
    context: int
    """Positions it is trained on."""
    tie_embeddings: bool = False
    """Whether the head's matrix is the embedding's."""
    dropout: float = 0.0
    """Share of each residual branch's values dropped in training."""
    causal: bool = False
    """Whether a position sees only earlier ones (family `ar`)."""
    time_conditioning: bool = False
    """Whether layers are modulated by the mask chance (adaLN-zero)."""
    backbone: str = "native"

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "dim",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "hidden_dim",
            "context",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"model {name} must be a positive integer, not {value!r}")
        if self.num_heads * self.head_dim != self.dim:
            raise ConfigError(
                f"model dim {self.dim} must be num_heads {self.num_heads} x head_dim "
                f"{self.head_dim}; choose dim as a multiple of the number of heads"
            )
        if self.num_kv_heads != self.num_heads:
            raise ConfigError(
                f"model num_kv_heads must equal num_heads {self.num_heads}, not {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"model head_dim must be even for rotary positions: {self.head_dim}")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"model dropout must be in [0, 1), not {self.dropout!r}")

    def to_json(self) -> dict[str, Any]:
        """Gives the `model` part of config.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Reads the `model` part of config.json; raises ConfigError on missing or unknown keys."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(
                f"model config has unknown key {unknown[0]!r}; known: {sorted(known)}"
            )
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"model config is incomplete: {error}") from error


def resolve_model(options: Mapping[str, Any]) -> ModelConfig:
    """Makes a ModelConfig from a preset's name and what overrides it.

    Args:
        options: `size`, `dim`, `num_layers`, `num_heads`, and any other ModelConfig field. What
            follows from others has a default: num_heads = dim / 64, hidden_dim = 2.75 dim.

    Raises:
        ConfigError: Unknown preset, or a value that does not fit.
    """
    values = {key: value for key, value in options.items() if value is not None}
    size = values.pop("size", None)
    if size is not None:
        if size not in PRESETS:
            raise ConfigError(f"size {size!r} is unknown; choose one of {', '.join(PRESETS)}")
        if {"dim", "num_layers"} <= set(values):
            raise ConfigError(f"size {size} has no effect beside both dim and num_layers: drop it")
        values = {**PRESETS[size], **values}
    if "dim" not in values or "num_layers" not in values:
        raise ConfigError(f"give a size ({', '.join(PRESETS)}), or both dim and num_layers")
    dim = values["dim"]
    if "num_heads" not in values:
        if dim % HEAD_DIM:
            raise ConfigError(f"dim {dim} is no multiple of {HEAD_DIM}; give num_heads as well")
        values["num_heads"] = dim // HEAD_DIM
    values.setdefault("num_kv_heads", values["num_heads"])
    values.setdefault("head_dim", dim // values["num_heads"] if values["num_heads"] > 0 else 0)
    values.setdefault("hidden_dim", dim * 11 // 4)
    return ModelConfig.from_json(values)
