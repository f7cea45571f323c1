"""How a public diffusion checkpoint denoises: mask, block size and ends, from its own files.

Each fact is taken from where it is most certain: config.json, then the tokenizer, then the model's
name, then the table of architectures. Knows no weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from ...runtime.errors import CheckpointError
from .architectures import (
    BLOCK_KEYS,
    END_NAMES,
    MASK_KEYS,
    MASK_NAMES,
    WHOLE_CANVAS,
    Architecture,
    Denoising,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a public diffusion checkpoint says about denoising."""

    mask_token_id: int
    mask_source: str
    """Where that was found."""
    block: int | None
    """Positions denoised together, WHOLE_CANVAS of the table, or None: nothing says."""
    block_source: str
    end_ids: tuple[int, ...]
    """Tokens that end a text whatever the checkpoint's settings name."""
    denoising: Denoising
    """What the table says of its architecture."""
    family_options: Mapping[str, Any]
    """Options of the family that config.json names."""

    @property
    def decoding(self) -> dict[str, Any]:
        """How the authors decode."""
        is_whole = self.block == WHOLE_CANVAS
        whole = self.denoising.whole_decoding if is_whole else {}
        return {**self.denoising.decoding, **whole}

    def options(self, context: int, where: str) -> dict[str, Any]:
        """Gives options of the model's family, and `context`, its positions.

        Args:
            context: Positions that config.json names.
            where: What messages call the checkpoint.

        Raises:
            CheckpointError: Nothing says which blocks the model was trained on.
        """
        if self.block is None:
            raise CheckpointError(
                f"{where}: neither config.json nor its name says which blocks it was trained on; "
                "give them: --block 32 for example, or --block full for a model that denoises the "
                "whole canvas"
            )
        more = self.family_options
        if self.block == WHOLE_CANVAS or self.block >= context:
            positions = min(context, self.denoising.canvas)
            return {"block_sizes": "full", "context": positions, **more}
        whole_blocks = max(context // self.block, 1) * self.block
        return {"block_sizes": str(self.block), "context": whole_blocks, **more}


def read_denoising(
    config: Mapping[str, Any],
    known: Architecture,
    tokenizer: Tokenizer,
    settings: Mapping[str, Any],
    name: str,
) -> Facts:
    """Reads the facts of one checkpoint.

    Args:
        config: config.json.
        known: Its architecture.
        tokenizer: Its tokenizer.
        settings: tokenizer_config.json and special_tokens_map.json, or what there is of them.
        name: The checkpoint's name on the hub, or its folder.

    Raises:
        CheckpointError: The mask is no token that the tokenizer has or can get.
    """
    assert known.denoising is not None
    mask, mask_source = _mask(config, known.denoising, tokenizer, settings)
    _check_mask(tokenizer, mask, mask_source, name)
    block, block_source = _block(config, known.denoising, name)
    ends = (tokenizer.token_to_id(token) for token in END_NAMES)
    return Facts(
        mask_token_id=mask,
        mask_source=mask_source,
        block=block,
        block_source=block_source,
        end_ids=tuple(token for token in ends if token is not None),
        denoising=known.denoising,
        family_options=_family_options(config, known.denoising),
    )


def _family_options(config: Mapping[str, Any], denoising: Denoising) -> dict[str, Any]:
    if denoising.sees_noise:
        names = ("graph", "noise_schedule", "condition_dim")
        found = {name: config[name] for name in names if name in config} | dict(denoising.options)
        if found["graph"] == "uniform" and "predicts" not in found:
            raise CheckpointError(
                "scores under uniform noise have no row for a mask, which is not supported; choose "
                "a checkpoint of the absorbing graph"
            )
        return found
    return {"logit_shift": denoising.logit_shift}


def _mask(
    config: Mapping[str, Any],
    denoising: Denoising,
    tokenizer: Tokenizer,
    settings: Mapping[str, Any],
) -> tuple[int, str]:
    for key in MASK_KEYS:
        if isinstance(config.get(key), int):
            return config[key], f"config.json, {key}"
    named = settings.get("mask_token")
    named = named.get("content") if isinstance(named, Mapping) else named
    for token in (named, *MASK_NAMES):
        number = tokenizer.token_to_id(token) if isinstance(token, str) else None
        if number is not None:
            return number, f"tokenizer, {token}"
    if denoising.mask_token_id is None:
        return config["vocab_size"] - 1, "config.json, vocab_size"
    return denoising.mask_token_id, "table of architectures"


def _check_mask(tokenizer: Tokenizer, mask: int, source: str, name: str) -> None:
    """Raises CheckpointError for a mask that is text, or that the tokenizer cannot have."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    first_free = max(vocabulary.values()) + 1
    token = tokenizer.id_to_token(mask)
    if token is None and mask != first_free:
        raise CheckpointError(
            f"{name}: the mask has id {mask} ({source}), which the tokenizer does not have (its "
            f"ids end at {first_free - 1}): copy tokenizer.json and config.json from one revision"
        )
    added = tokenizer.get_added_tokens_decoder()
    if token is not None and mask not in added:
        raise CheckpointError(
            f"{name}: the mask has id {mask} ({source}), which is the text {token!r} in the "
            "tokenizer: copy tokenizer.json and config.json from one revision"
        )


def _block(config: Mapping[str, Any], denoising: Denoising, name: str) -> tuple[int | None, str]:
    for key in BLOCK_KEYS:
        value = config.get(key)
        if value is None:
            continue
        if type(value) is not int or value < 0:
            raise CheckpointError(
                f"{name}: {key} of config.json is {value!r}, no number of positions; copy it again"
            )
        return value, f"config.json, {key}"
    for pattern, size in denoising.blocks:
        found = re.search(pattern, name)
        if found:
            return int(found[1]) if found.groups() else size, "the checkpoint's name"
    return denoising.block, "table of architectures"
