"""What all families' configurations share: special ids, and how options become config.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...runtime.errors import ConfigError
from ..nn.config import resolve_model

MODEL_OPTIONS = (
    "size",
    "dim",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "hidden_dim",
    "rope_theta",
    "norm_eps",
    "vocab_size",
    "context",
    "tie_embeddings",
    "dropout",
    "backbone",
)
SPECIAL_OPTIONS = ("eos_token_id", "mask_token_id", "pad_token_id")


def check_options(family: str, options: Mapping[str, Any], own: Iterable[str]) -> dict[str, Any]:
    """Drops None values and refuses unknown names; raises ConfigError."""
    known = {*MODEL_OPTIONS, *SPECIAL_OPTIONS, *own}
    given = {name: value for name, value in options.items() if value is not None}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ConfigError(
            f"family {family} takes no option {unknown[0]!r}; it takes {', '.join(sorted(known))}"
        )
    for name in ("vocab_size", "context", "eos_token_id"):
        if name not in given:
            raise ConfigError(f"family {family} needs the option {name}")
    for name in SPECIAL_OPTIONS:
        if name in given and not 0 <= given[name] < given["vocab_size"]:
            raise ConfigError(
                f"{name} {given[name]} is outside the vocabulary of {given['vocab_size']} tokens"
            )
    return given


def common_config(
    family: str, given: Mapping[str, Any], model_extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Makes the part of config.json that all families write alike."""
    chosen = {name: given[name] for name in MODEL_OPTIONS if name in given}
    model = resolve_model({**chosen, **model_extra})
    return {
        "family": family,
        "model": model.to_json(),
        "vocab_size": model.vocab_size,
        **{name: given.get(name) for name in SPECIAL_OPTIONS},
    }
