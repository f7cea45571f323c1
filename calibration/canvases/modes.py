"""The ways a family can be asked to decode: block sizes, continuations, gaps.

What a block size or a gap means to a family is asked of its update rule, by starting a request;
nothing here names a family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...runtime.bundle.manifest import Manifest
from ...runtime.errors import ConfigError
from ...runtime.families.base import LoadedModel, Request
from ...runtime.families.table import decoding_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingMode:
    """One way to decode: with a block size or the family's own, a continuation or a gap."""

    block: int | None
    gap: bool
    further: Mapping[str, Any] = field(default_factory=dict)
    """Settings beside the defaults."""

    def request(
        self,
        manifest: Manifest,
        prompt: np.ndarray,
        length: int,
        share: float,
        draw: tuple[int, int],
        banned: tuple[int, ...] = (),
    ) -> Request:
        """Makes a request of `length` positions that gives `share` of them, one token at least."""
        overrides: dict[str, Any] = {} if self.gap else {"block_size": self.block}
        settings = decoding_settings(manifest, {**overrides, **self.further})
        given = prompt[: max(1, min(int(share * length), len(prompt), length - 1))]
        common: dict[str, Any] = {
            "seed": draw[0], "sample_index": draw[1], "settings": settings, "banned_ids": banned,
        }  # fmt: skip
        if not self.gap:
            return Request(
                prompt_ids=tuple(given.tolist()), max_tokens=length - len(given), **common
            )
        assert manifest.mask_token_id is not None
        text = np.full(length, manifest.mask_token_id, np.int32)
        # Fixed text on both sides of the gap, so that positions from first to last are met.
        head = max(1, len(given) // 2)
        text[:head] = given[:head]
        if tail := given[head:].tolist():
            text[-len(tail) :] = tail
        return Request(prompt_ids=(), max_tokens=0, template_ids=tuple(text.tolist()), **common)


def reads_as_it_writes(model: LoadedModel) -> bool:
    """Returns whether reading a text gives graphs the inputs that writing it does.

    So it is where a text goes token by token and each token sees those before it: rows of a long
    run are then the rows of many short ones.
    """
    return model.family.exact and all(mode.block is None for mode in modes_of(model))


def modes_of(model: LoadedModel) -> list[DecodingMode]:
    """Lists the ways of decoding that the family accepts, by starting a request of each."""
    manifest = model.manifest
    prompt = np.array(manifest.framing.prompt(()), np.int32)

    def accepts(mode: DecodingMode) -> bool:
        try:
            model.start(mode.request(manifest, prompt, 2, 0.0, (0, 0)))
        except ConfigError:
            return False
        return True

    # Rows of a graph need not be a block: what can be asked for is what the family accepts.
    sizes = sorted({*manifest.block_sizes, *(spec.rows for spec in model.specs)})
    # Others serve to store one block and begin the next in a single run.
    sizes = [size for size in sizes if size in manifest.block_sizes] or sizes
    chosen = [mode for size in sizes if accepts(mode := DecodingMode(block=size, gap=False))]
    modes = chosen or [DecodingMode(block=None, gap=False)]
    gap = DecodingMode(block=sizes[-1], gap=True)
    if manifest.mask_token_id is not None and accepts(gap):
        modes.append(gap)
    further = model.family.further_settings(model.specs)
    return modes + [replace(mode, further=settings) for settings in further for mode in modes]
