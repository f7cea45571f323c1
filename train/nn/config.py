"""Shape of a denoiser, its presets, and the checks on both. Knows no objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ...runtime.errors import ConfigError

HEAD_DIM = 64
ROPE_THETA = 10000.0
NORM_EPS = 1e-5

SIZES = ("dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "hidden_dim")
SHAPE_OPTIONS = (*SIZES, "tie_embeddings", "rope_theta", "rope_scaling", "norm_eps", "backbone")
"""Fields of ModelConfig that a family's options give, or a checkpoint that a run starts from."""

PRESETS: Mapping[str, Mapping[str, int]] = {
    "tiny": {"dim": 256, "num_layers": 4},  # 7.4 M at vocabulary 8,192, untied
    "small": {"dim": 384, "num_layers": 6},  # 17.1 M
    "medium": {"dim": 512, "num_layers": 8},  # 34.1 M
    "large": {"dim": 640, "num_layers": 10},  # 60.7 M
}

BACKBONES: Mapping[str, Mapping[str, Any]] = {
    "native": {},
    "llama": {},
    "qwen2": {"qkv_bias": True, "rope_theta": 1e6, "norm_eps": 1e-6},
    "qwen3": {"qk_norm": True, "rope_theta": 1e6, "norm_eps": 1e-6},
    "ddit": {"layer_norm": True, "plain_mlp": True, "head_bias": True},
}
"""What each backbone sets in the one transformer there is. `llama`, `qwen2` and `qwen3` are Hugging
Face's architectures of these names, and their checkpoints are folders in its format; `ddit` is the
diffusion transformer of SEDD and MDLM."""
SWITCHES = ("qkv_bias", "qk_norm", "layer_norm", "plain_mlp", "head_bias")
"""Fields of ModelConfig that a backbone sets; False unless it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How Llama 3 stretches rotary positions: long wavelengths by `factor`, short ones not.

    Between `context / high_freq_factor` and `context / low_freq_factor` positions of wavelength,
    the rate goes smoothly from one to the other.
    """

    factor: float
    """How much longer the longest wavelengths become."""
    low_freq_factor: float
    high_freq_factor: float
    context: int
    """Positions that the model was trained on before."""

    def __post_init__(self) -> None:
        if not 0.0 < self.low_freq_factor < self.high_freq_factor < float("inf"):
            raise ConfigError(
                f"rope scaling needs 0 < low_freq_factor < high_freq_factor, not "
                f"{self.low_freq_factor!r} and {self.high_freq_factor!r}"
            )
        if not 1.0 <= self.factor < float("inf") or self.context < 1:
            raise ConfigError(
                f"rope scaling needs a factor of at least 1 and a positive context, not "
                f"{self.factor!r} and {self.context!r}"
            )


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
    """Heads of keys and values; each serves num_heads / num_kv_heads heads of queries."""
    head_dim: int
    """Width of one head; num_heads x head_dim may differ from dim."""
    hidden_dim: int
    """Width of the gated MLP."""
    context: int
    """Positions it is trained on."""
    tie_embeddings: bool = False
    """Whether the head's matrix is the embedding's."""
    dropout: float = 0.0
    """Share of each residual branch's values dropped in training."""
    causal: bool = False
    """Whether a position sees only itself and earlier ones."""
    time_conditioning: bool = False
    """Whether layers are modulated by the mask chance (adaLN-zero)."""
    backbone: str = "native"
    """A name of `BACKBONES`."""
    qkv_bias: bool = False
    """Whether queries, keys and values get a bias (Qwen2)."""
    qk_norm: bool = False
    """Whether each head of queries and keys is normalised before its rotation (Qwen3)."""
    layer_norm: bool = False
    """Whether norms take off the mean and have a bias (LayerNorm), or not (RMSNorm)."""
    plain_mlp: bool = False
    """Whether the MLP is two matrices with biases and GELU between them, or gated."""
    head_bias: bool = False
    """Whether the head has a bias."""
    rope_theta: float = ROPE_THETA
    """Base of the rotary embedding's wavelengths."""
    rope_scaling: RopeScaling | None = None
    """None: wavelengths are those of the base (all but Llama 3.1 and later)."""
    norm_eps: float = NORM_EPS
    """Added to the mean square in norms."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", *SIZES, "context"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"model {name} must be a positive integer, not {value!r}")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"model num_kv_heads {self.num_kv_heads} must divide num_heads {self.num_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"model head_dim must be even for rotary positions: {self.head_dim}")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"model dropout must be in [0, 1), not {self.dropout!r}")
        for name in ("rope_theta", "norm_eps"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"model {name} must be above 0, not {getattr(self, name)!r}")
        if self.backbone not in BACKBONES:
            raise ConfigError(
                f"backbone {self.backbone!r} is unknown; choose one of {', '.join(BACKBONES)}"
            )
        for name in SWITCHES:
            wanted = BACKBONES[self.backbone].get(name, False)
            if self.backbone != "native" and getattr(self, name) != wanted:
                raise ConfigError(f"backbone {self.backbone} has {name} {str(wanted).lower()}")

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
            scaling = values.get("rope_scaling")
            if isinstance(scaling, Mapping):
                values = {**values, "rope_scaling": RopeScaling(**scaling)}
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"model config is incomplete: {error}") from error


def with_preset(
    options: Mapping[str, Any], presets: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Drops None values, and puts the values of the preset `size` in its place.

    Raises:
        ConfigError: Unknown preset, one without effect, or no width or depth.
    """
    values = {key: value for key, value in options.items() if value is not None}
    size = values.pop("size", None)
    if size is not None:
        if size not in presets:
            raise ConfigError(f"--size {size!r} is unknown; choose one of {', '.join(presets)}")
        if {"dim", "num_layers"} <= set(values):
            raise ConfigError(f"--size {size} has no effect with --dim and --layers: drop it")
        values = {**presets[size], **values}
    if "dim" not in values or "num_layers" not in values:
        raise ConfigError(f"give --size ({', '.join(presets)}), or both --dim and --layers")
    return values


def resolve_model(options: Mapping[str, Any]) -> ModelConfig:
    """Makes a ModelConfig from a preset's name and what overrides it.

    Args:
        options: `size`, `dim`, `num_layers`, `num_heads`, and any other ModelConfig field. What
            follows from others has a default: num_heads = dim / 64, hidden_dim = 2.75 dim, as many
            kv heads as heads, and what the backbone sets.

    Raises:
        ConfigError: Unknown preset, or a value that does not fit.
    """
    values = with_preset(options, PRESETS)
    dim = values["dim"]
    values = {**BACKBONES.get(values.get("backbone", "native"), {}), **values}
    if "num_heads" not in values:
        if dim % HEAD_DIM:
            raise ConfigError(f"--dim {dim} is no multiple of {HEAD_DIM}; give --heads as well")
        values["num_heads"] = dim // HEAD_DIM
    values.setdefault("num_kv_heads", values["num_heads"])
    if "head_dim" not in values:
        heads = max(values["num_heads"], 1)
        if dim % heads:
            raise ConfigError(
                f"--dim {dim} is no multiple of --heads {heads}; choose another of the two"
            )
        values["head_dim"] = dim // heads
    values.setdefault("hidden_dim", dim * 11 // 4)
    return ModelConfig.from_json(values)
