"""What the families' configurations share: special ids, trained block sizes, config.json."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch

from ...runtime.errors import ConfigError
from ..config import option_of
from ..nn.config import BACKBONES, SHAPE_OPTIONS, resolve_model

MODEL_OPTIONS = ("size", *SHAPE_OPTIONS, "vocab_size", "context", "dropout")
TEXT_OPTIONS = ("start_ids", "end_ids")
"""Tokens in front of a text, and those beside the end of text that end one."""
SPECIAL_OPTIONS = ("eos_token_id", "mask_token_id", "pad_token_id")


def check_options(
    family: str,
    options: Mapping[str, Any],
    own: Iterable[str],
    *,
    needs_mask: bool = False,
    backbones: Collection[str] = tuple(BACKBONES),
) -> dict[str, Any]:
    """Drops None values and refuses unknown names; raises ConfigError."""
    known = {*MODEL_OPTIONS, *SPECIAL_OPTIONS, *TEXT_OPTIONS, *own}
    given = {name: value for name, value in options.items() if value is not None}
    backbone = given.get("backbone")
    if backbone is not None and backbone not in backbones:  # first: its options are unknown, too
        raise ConfigError(
            f"--family {family} has the backbone {', '.join(backbones)}, not {backbone}; choose "
            "another --family, --backbone or --init"
        )
    unknown = sorted(set(given) - known)
    if unknown:
        takes = ", ".join(map(option_of, own)) or "no options of an objective"
        raise ConfigError(
            f"--family {family} takes no {option_of(unknown[0])}; beside the model's shape "
            f"it takes {takes}"
        )
    needed = ("vocab_size", "context", "eos_token_id", *(["mask_token_id"] if needs_mask else []))
    for name in needed:
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
    """Makes the part of config.json that all families of the one transformer write alike."""
    chosen = {name: given[name] for name in MODEL_OPTIONS if name in given}
    return shared_config(family, given, resolve_model({**chosen, **model_extra}).to_json())


def shared_config(
    family: str, given: Mapping[str, Any], model: Mapping[str, Any]
) -> dict[str, Any]:
    """Makes the part of config.json that all families write alike, around the part `model`."""
    return {
        "family": family,
        "model": dict(model),
        "vocab_size": model["vocab_size"],
        **{name: given.get(name) for name in SPECIAL_OPTIONS},
        **{name: list(given[name]) for name in TEXT_OPTIONS if given.get(name) is not None},
    }


def forbidden_ids(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Tokens that are never predicted: mask and padding."""
    ids = (config["mask_token_id"], config["pad_token_id"])
    return tuple(sorted({token for token in ids if token is not None} - {config["eos_token_id"]}))


def parse_block_sizes(text: str | Sequence[int | str], context: int) -> tuple[int, ...]:
    """Reads "16,32,full" (full = context); raises ConfigError unless each divides the context."""
    parts = text.split(",") if isinstance(text, str) else list(text)
    sizes: list[int] = []
    for part in parts:
        word = str(part).strip()
        if word != "full" and not word.isdecimal():
            raise ConfigError(f"--block-size {word!r} must be a positive integer or 'full'")
        size = context if word == "full" else int(word)
        if size < 1 or context % size:
            raise ConfigError(
                f"--block-size {size} must divide the context of {context} positions (--context)"
            )
        if size not in sizes:
            sizes.append(size)
    return tuple(sizes)


def split_weights(text: str | Sequence[int | str]) -> tuple[list[str], tuple[float, ...]]:
    """Splits "16:1,32:2,full" into sizes and weights; no weights at all give an empty tuple.

    Raises:
        ConfigError: A weight is no positive number.
    """
    parts = text.split(",") if isinstance(text, str) else [str(part) for part in text]
    pairs = [part.strip().partition(":") for part in parts]
    words = [word for word, _, _ in pairs]
    if not any(colon for _, colon, _ in pairs):
        return words, ()
    if len(set(words)) < len(words):
        raise ConfigError(f"--block-size: sizes with weights must differ: {','.join(parts)!r}")
    try:
        weights = tuple(float(weight) if colon else 1.0 for _, colon, weight in pairs)
    except ValueError:
        raise ConfigError(
            f"--block-size: weights must be numbers, as in 16:1,32:2: {text!r}"
        ) from None
    if any(not 0.0 < weight < float("inf") for weight in weights):
        raise ConfigError(f"--block-size: weights must be above 0: {text!r}")
    return words, weights


def draw_size(sizes: Sequence[int], weights: Sequence[float], generator: torch.Generator) -> int:
    """Draws a batch's size from those trained, by `split_weights`' weights; none: all alike."""
    shares = torch.tensor(weights or [1.0] * len(sizes), dtype=torch.float64)
    return sizes[int(torch.multinomial(shares, 1, generator=generator))]
