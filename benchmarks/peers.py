"""The PyTorch peers: how a masked diffusion model is decoded without this project's runtime.

`WholeCanvas` is the plain way (LLaDA's loop): every step runs the whole canvas and commits the
most confident tokens of a fixed schedule. `BlockCache` is what a careful PyTorch user writes: block
by block, keys and values of finished blocks kept in place, the head on masked rows only, the
commit run cut off after the last layer's keys and values. Both use the checkpoint's own modules
(attention is `scaled_dot_product_attention`) under `inference_mode`; sampling, rules and cache
share nothing with `runtime`. Texts never end early: eos is among the ids that are never sampled.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..runtime.decoding import DecodingRule
from ..runtime.errors import ConfigError
from ..runtime.ops.rows.contract import Sampling
from ..runtime.ops.unmask.contract import Kind, Score, Selection
from ..train.nn.layers import rotate, rotation
from ..train.nn.transformer import Layer
from .peer_weights import PeerModel

RULES = ("low_confidence", "threshold", "factor", "entropy_bound")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A finished text."""

    token_ids: list[int]
    """New tokens."""
    nfe: int
    """Runs of the model, commits included."""


def check_rule(rule: DecodingRule) -> None:
    """Raises ConfigError for what the peers do not implement."""
    if rule.name not in RULES:
        raise ConfigError(
            f"the PyTorch peers know the rules {', '.join(RULES)}, not {rule.name}; "
            "choose one of them with --rule"
        )
    if rule.sampling.repetition_penalty != 1.0:
        raise ConfigError("the PyTorch peers have no repetition penalty; leave it at 1")


def quota(total: int, steps: int, step: int) -> int:
    """Gives the tokens of one step when `total` are spread over `steps`, earlier ones first."""
    return total // steps + (step < total % steps)


def truncate(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Applies top-k, then top-p within it, to tempered logits (M, V)."""
    if sampling.top_k is not None:
        lowest = logits.topk(min(sampling.top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    if sampling.top_p is not None:
        ordered, index = logits.sort(dim=-1, descending=True)
        share = ordered.softmax(-1)
        beyond = share.cumsum(-1) - share >= sampling.top_p
        logits = torch.full_like(logits, -torch.inf).scatter(
            -1, index, ordered.masked_fill(beyond, -torch.inf)
        )
    return logits


def candidates(
    logits: torch.Tensor, rule: DecodingRule, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws a token per row of logits (M, V), banned ids at -inf: tokens (M,), scores (M,)."""
    sampling, selection = rule.sampling, rule.selection
    assert selection is not None
    probs = logits.softmax(-1)
    if sampling.greedy:
        score, token = probs.max(-1)
    else:
        tempered = truncate(logits / sampling.temperature, sampling)
        drawn = torch.multinomial(tempered.softmax(-1), 1, generator=generator)
        score, token = probs.gather(-1, drawn)[:, 0], drawn[:, 0]
    if selection.score is Score.ENTROPY:
        score = torch.special.entr(probs).sum(-1).neg()
    return token, score


def select(score: torch.Tensor, selection: Selection, total: int, step: int) -> torch.Tensor:
    """Gives the indices (N,) of the rows that this step commits, from scores (M,)."""
    ordered, order = score.sort(descending=True, stable=True)
    match selection.kind:
        case Kind.QUOTA:
            return order[: max(1, quota(total, selection.steps or total, step))]
        case Kind.THRESHOLD:
            accepted = ordered >= selection.limit
        case Kind.FACTOR:
            rank = torch.arange(1, len(ordered) + 1)
            accepted = (ordered >= 1 - selection.limit / (rank + 1)).int().cumprod(0).bool()
        case Kind.ENTROPY_BOUND:
            accepted = ordered - ordered.cumsum(0) <= selection.limit
        case _:
            raise AssertionError(f"check_rule lets {selection.kind.name} through")
    accepted[0] = True
    return order[accepted]


class WholeCanvas:
    """The whole canvas at every step, plain or under `torch.compile`."""

    def __init__(self, peer: PeerModel, num_tokens: int, *, compiled: bool) -> None:
        """Makes a decoder of `num_tokens` behind the start token."""
        self._peer, self._num_tokens = peer, num_tokens
        # The shape never changes: static shapes let Inductor specialise.
        self._model = torch.compile(peer.model, dynamic=False) if compiled else peer.model
        self._banned = torch.tensor(peer.banned)

    @torch.inference_mode()
    def decode(self, rule: DecodingRule, seed: int) -> Decoded:
        """Decodes one text by a rule over all positions as one block."""
        selection, generator = rule.selection, torch.Generator().manual_seed(seed)
        assert selection is not None
        ids = torch.full((1, self._num_tokens + 1), self._peer.mask_token_id)
        ids[0, 0] = self._peer.eos_token_id
        positions = torch.arange(ids.shape[1])
        masked = torch.arange(1, ids.shape[1])
        step = 0
        while len(masked):
            logits = self._model(ids, positions)[0, masked]
            logits[:, self._banned] = -torch.inf
            token, score = candidates(logits, rule, generator)
            chosen = select(score, selection, self._num_tokens, step)
            ids[0, masked[chosen]] = token[chosen]
            masked = (ids[0] == self._peer.mask_token_id).nonzero()[:, 0]
            step += 1
        return Decoded(token_ids=ids[0, 1:].tolist(), nfe=step)


class BlockCache:
    """Block by block over a cache of keys and values, which are written where they stay."""

    def __init__(self, peer: PeerModel, num_tokens: int, block: int) -> None:
        """Makes a decoder of `num_tokens` behind the start token in blocks of `block`."""
        self._peer, self._num_tokens, self._block = peer, num_tokens, block
        config = peer.model.config
        capacity = -(-(num_tokens + 1) // block) * block
        shape = (config.num_layers, 1, config.num_heads, capacity, config.head_dim)
        self._keys, self._values = torch.zeros(shape), torch.zeros(shape)
        self._cosine, self._sine = rotation(torch.arange(capacity), peer.model.inv_freq)
        self._banned = torch.tensor(peer.banned)

    def _run(self, ids: torch.Tensor, start: int, rows: torch.Tensor | None) -> torch.Tensor | None:
        """Runs a block (1, B) behind `start` cached rows and stores its keys and values.

        Returns logits (len(rows), V); None without rows, when only the cache is wanted.
        """
        model, heads = self._peer.model, self._peer.model.config.num_heads
        end = start + ids.shape[1]
        turn = self._cosine[start:end], self._sine[start:end]
        x = model.embed(ids)
        last = len(model.trunk.layers) - 1
        for index, layer in enumerate(model.trunk.layers):
            assert isinstance(layer, Layer)
            mixed = layer.attention.qkv(layer.attention_norm(x))
            mixed = mixed.view(1, ids.shape[1], 3 * heads, -1)
            turned = rotate(mixed[:, :, : 2 * heads], *turn).transpose(1, 2)
            self._keys[index, :, :, start:end] = turned[:, heads:]
            self._values[index, :, :, start:end] = mixed[:, :, 2 * heads :].transpose(1, 2)
            query = turned[:, :heads]
            if index == last:
                if rows is None:
                    return None
                # Of the last layer's output only the rows with a mask are wanted.
                query, x = query[:, :, rows], x[:, rows]
            keys, values = self._keys[index, :, :, :end], self._values[index, :, :, :end]
            seen = F.scaled_dot_product_attention(query, keys, values)
            x = x + layer.attention.out(seen.transpose(1, 2).flatten(2))
            x = x + layer.mlp(layer.mlp_norm(x))
        return model.head(model.trunk.norm(x))[0]

    @torch.inference_mode()
    def decode(self, rule: DecodingRule, seed: int) -> Decoded:
        """Decodes one text."""
        selection, generator = rule.selection, torch.Generator().manual_seed(seed)
        assert selection is not None
        mask, limit, nfe = self._peer.mask_token_id, self._num_tokens + 1, 0
        text = [self._peer.eos_token_id]
        for start in range(0, limit, self._block):
            ids = torch.full((1, self._block), mask)
            if start == 0:
                ids[0, 0] = text[0]
            filled = min(self._block, limit - start)
            masked = (ids[0, :filled] == mask).nonzero()[:, 0]
            total, step = len(masked), 0
            while len(masked):
                logits = self._run(ids, start, masked)
                assert logits is not None
                logits[:, self._banned] = -torch.inf
                token, score = candidates(logits, rule, generator)
                chosen = select(score, selection, total, step)
                ids[0, masked[chosen]] = token[chosen]
                masked = (ids[0, :filled] == mask).nonzero()[:, 0]
                step += 1
            nfe += step
            text += ids[0, int(start == 0) : filled].tolist()
            if start + self._block < limit:
                self._run(ids, start, None)
                nfe += 1
        return Decoded(token_ids=text[1:], nfe=nfe)
