"""What a caller asks to have continued, checked and made into a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .decoding import DecodingRule
from .errors import ConfigError
from .families.base import LoadedModel, Request

DEFAULT_MAX_TOKENS = 256
"""New tokens when the caller does not say; fewer if the model's positions end before."""


def continuation(
    model: LoadedModel,
    prompt_ids: Sequence[int],
    settings: DecodingRule,
    *,
    max_tokens: int | None,
    slide: bool,
    **fields: Any,
) -> Request:
    """Returns the request that continues token ids.

    Args:
        prompt_ids: What to continue, start token included.
        max_tokens: New tokens at most; None: what fits without a sliding window, 256 at most; 256
            if none fits.

    Raises:
        ConfigError: Fewer than one new token, or a prompt that leaves no position to write at.
    """
    if max_tokens is not None and max_tokens < 1:
        raise ConfigError(f"max_tokens must be 1 or more, found {max_tokens}")
    ids = tuple(prompt_ids)
    positions = model.positions(settings)
    left = positions - len(ids)
    if left <= 0 and not slide:
        raise ConfigError(
            f"the prompt has {len(ids)} tokens, start token included; this bundle sees "
            f"{positions} positions as it decodes here: shorten it, or let it slide (--slide; "
            "slide=True), then only its tail is seen"
        )
    room = min(left, DEFAULT_MAX_TOKENS) if left > 0 else DEFAULT_MAX_TOKENS
    return Request(
        prompt_ids=ids,
        max_tokens=max_tokens or room,
        settings=settings,
        **fields,
    )
