"""Greedy continuations of real beginnings by a causal model, which `own_text` writes to a file.

Each text is the first tokens of a real one, continued greedily up to the end-of-text token, or to
the last whole sentence before an n-gram of 8 tokens comes back or the context is full. Source of
the idea: self-distillation in Medusa (arXiv 2401.10774), section 2.3.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from ..runtime.errors import CheckpointError
from ..runtime.text.framing import Framing
from .checkpoints.convert import open_any
from .evaluate import open_model
from .nn.layers import Angles, Attention, rotation
from .nn.transformer import Transformer

GIVEN = (8, 16, 32, 64, 96, 128)
"""Tokens of the real text that a continuation starts from: one of these, in turn."""
REPEAT = 8
"""Tokens of the n-gram whose return ends a text."""


class CausalBatch:
    """Equally long beginnings, continued greedily side by side over one KV cache."""

    def __init__(self, model: Transformer, batch: int) -> None:
        """Allocates the cache for `batch` texts of the model's context."""
        config = model.config
        self._model = model
        shape = (config.num_layers, 2, batch, config.num_kv_heads, config.context, config.head_dim)
        self._cache = torch.zeros(shape)

    def step(self, ids: torch.Tensor, start: int) -> torch.Tensor:
        """Runs ids (B, T) at positions from `start` on; returns the last one's logits (B, V)."""
        model, end = self._model, start + ids.shape[1]
        angles = rotation(torch.arange(start, end), model.inv_freq)
        x = F.embedding(ids, model.embed.weight)
        for index, layer in enumerate(model.trunk.layers):
            x = layer(x, angles, attend=partial(self._attend, index, start))
        return model.head(model.trunk.norm(x[:, -1]))

    def _attend(
        self,
        index: int,
        start: int,
        attention: Attention,
        x: torch.Tensor,
        angles: Angles,
        *_rest: object,
    ) -> torch.Tensor:
        query, key, value = (p.transpose(1, 2) for p in attention.project(x, *angles))
        cache, end = self._cache[index], start + x.shape[1]
        cache[0, :, :, start:end], cache[1, :, :, start:end] = key, value
        seen = F.scaled_dot_product_attention(
            query,
            cache[0, :, :, :end],
            cache[1, :, :, :end],
            is_causal=start == 0,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return attention.out(seen.transpose(1, 2).flatten(2))

    @torch.inference_mode()
    def continued(
        self, given: torch.Tensor, banned: Sequence[int], ends: Sequence[int]
    ) -> torch.Tensor:
        """Continues (B, T) ids to (B, context) greedily; what follows an end of text is noise."""
        length = self._model.config.context
        ids = torch.full((len(given), length), ends[0])
        ids[:, : given.shape[1]] = given
        logits = self.step(given, 0)
        for position in range(given.shape[1], length):
            logits[:, list(banned)] = -torch.inf
            ids[:, position] = logits.argmax(dim=1)
            new = ids[:, given.shape[1] : position + 1]
            if bool(torch.isin(new, torch.tensor(ends)).any(dim=1).all()):
                break
            logits = self.step(ids[:, position : position + 1], position)
        return ids


def finished(
    ids: Sequence[int], given: int, ends: Sequence[int], start: int
) -> tuple[list[int], bool]:
    """Cuts a continuation where it ends or begins to repeat itself.

    Args:
        ids: The text, begun with `start` start tokens.
        given: How many of them were given.

    Returns:
        The ids, start tokens and end left out, and whether the model ended the text itself.
    """
    seen: set[tuple[int, ...]] = set()
    for end in range(1, len(ids) + 1):
        if end > given and ids[end - 1] in ends:
            return list(ids[start : end - 1]), True
        if end < REPEAT:
            continue
        gram = tuple(ids[end - REPEAT : end])
        if gram in seen:
            return list(ids[start : end - REPEAT]), False
        seen.add(gram)
    return list(ids[start:]), False


def whole_sentences(text: str) -> str:
    """Cuts a text behind its last sentence; empty if there is none."""
    ends = [text.rfind(mark) for mark in ".!?"]
    end = max(ends) + 1
    return text[: end + 1] if text[end : end + 1] == '"' else text[:end]


def _beginnings(
    tokenizer: Tokenizer, texts: Iterator[str], framing: Framing, batch: int, context: int
) -> Iterator[torch.Tensor]:
    """Yields (batch, T) ids of real texts' first tokens, T one of GIVEN in turn, start token in."""
    sizes = [size for size in GIVEN if size < context]
    number = 0
    rows: list[list[int]] = []
    for text in texts:
        size = sizes[number % len(sizes)]
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) < size:
            continue
        rows.append([*framing.start_ids, *ids][:size])
        if len(rows) == batch:
            yield torch.tensor(rows)
            rows, number = [], number + 1


def continuations(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Iterator[str],
    *,
    framing: Framing,
    ends: Sequence[int],
    banned: Sequence[int],
    batch: int,
) -> Iterator[str]:
    """Yields the texts that the model makes of real ones' beginnings."""
    loop = CausalBatch(model, batch)
    for given in _beginnings(tokenizer, texts, framing, batch, model.config.context):
        for row in loop.continued(given, banned, ends).tolist():
            ids, ended = finished(row, given.shape[1], ends, len(framing.start_ids))
            text = tokenizer.decode(ids, skip_special_tokens=False)
            text = text if ended else whole_sentences(text)
            if text.strip():
                yield text


def open_causal(path: Path) -> tuple[Transformer, Tokenizer, dict]:
    """Opens a checkpoint of a causal model; gives model, tokenizer and config.json."""
    checkpoint = open_any(path)
    _, model = open_model(checkpoint)
    if not isinstance(model, Transformer) or not model.config.causal:
        raise CheckpointError(f"{path}: not a causal model; give one that writes token by token")
    if model.config.context <= GIVEN[0]:
        raise CheckpointError(
            f"{path}: knows {model.config.context} positions, too few to continue {GIVEN[0]} tokens"
        )
    return model, Tokenizer.from_str(checkpoint.tokenizer_json), checkpoint.config
