"""An external judge of stories: the perplexity of a llama2.c model, in plain NumPy.

Reads the llama2.c v0 format (karpathy/llama2.c, `run.c` and `export.py --version 0`): seven int32
(dim, hidden_dim, num_layers, num_heads, num_kv_heads, vocab_size, seq_len; a negative vocab_size
marks an untied head), then float32 weights. The small TinyStories model `stories260K` and its
`tok512` tokenizer are the judge that the figures of this project come from. It is weak, but it
has seen none of our models. Perplexities are per token of *its* tokenizer, so that texts of
models with different tokenizers compare.

Windowing: a text is cut into pieces of at most `seq_len` - 1 tokens; each piece is read from BOS
anew, and every token but the BOS is scored once. For orientation, stories260K in shorter windows
of 255 tokens, line breaks turned into spaces: about 3.9 on held-out TinyStories, 24 to 25 on
FairytaleQA, 106 on Tiny Shakespeare; in whole windows with line breaks 3.85, 27 to 31 and 122.
Knows nothing of where texts come from.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import DataError
from .judge_tokenizer import JudgeTokenizer

BOS = 1
NORM_EPSILON = 1e-5
ROPE_BASE = 10000.0
TOKENS_PER_BATCH = 4096
"""Bounds the working set (scores: heads x tokens x window x 4 bytes)."""

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeConfig:
    """The header of a llama2.c checkpoint."""

    dim: int
    hidden_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    seq_len: int
    """Tokens of one window, BOS included."""
    tied: bool
    """Whether the head is the embedding."""

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.dim // self.num_heads


def _read_config(data: bytes, path: Path) -> JudgeConfig:
    """Parses the header; DataError if it cannot be one."""
    if len(data) < 28:
        raise DataError(f"{path}: wanted a llama2.c checkpoint, found {len(data)} bytes")
    dim, hidden, layers, heads, kv_heads, vocab, seq_len = struct.unpack("<7i", data[:28])
    positive = min(dim, hidden, layers, heads, kv_heads, seq_len) > 0 and vocab != 0
    if not positive or dim % heads or heads % kv_heads or (dim // heads) % 2:
        raise DataError(f"{path}: wanted a llama2.c v0 checkpoint, found a header it cannot have")
    return JudgeConfig(
        dim=dim,
        hidden_dim=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        vocab_size=abs(vocab),
        seq_len=seq_len,
        tied=vocab > 0,
    )


def _weight_shapes(config: JudgeConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields names and shapes in file order; matrices are (out, in)."""
    c, kv_dim = config, config.num_kv_heads * config.head_dim
    yield "embedding", (c.vocab_size, c.dim)
    yield "attention_norm", (c.num_layers, c.dim)
    yield "wq", (c.num_layers, c.dim, c.dim)
    yield "wk", (c.num_layers, kv_dim, c.dim)
    yield "wv", (c.num_layers, kv_dim, c.dim)
    yield "wo", (c.num_layers, c.dim, c.dim)
    yield "ffn_norm", (c.num_layers, c.dim)
    yield "w1", (c.num_layers, c.hidden_dim, c.dim)
    yield "w2", (c.num_layers, c.dim, c.hidden_dim)
    yield "w3", (c.num_layers, c.hidden_dim, c.dim)
    yield "final_norm", (c.dim,)
    # Rotation tables: read over, because they follow from the shape.
    yield "freq_cos", (c.seq_len, c.head_dim // 2)
    yield "freq_sin", (c.seq_len, c.head_dim // 2)
    if not config.tied:
        yield "head", (c.vocab_size, c.dim)


def _norm(x: Array, weight: Array) -> Array:
    """RMS norm over the last axis."""
    scale = np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(NORM_EPSILON))
    return x / scale * weight


def _rotate(x: Array) -> Array:
    """Rotates neighbouring channel pairs of x (B, T, heads, head_dim) by their position."""
    length, half = x.shape[1], x.shape[3] // 2
    frequency = ROPE_BASE ** (-np.arange(half) / half)
    angle = np.arange(length)[:, None] * frequency
    cos = np.cos(angle).astype(np.float32)[:, None, :]
    sin = np.sin(angle).astype(np.float32)[:, None, :]
    even, odd = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2] = even * cos - odd * sin
    out[..., 1::2] = even * sin + odd * cos
    return out


class JudgeModel:
    """The transformer: token ids to logits."""

    def __init__(self, path: Path) -> None:
        """Reads a checkpoint; DataError if it is missing, foreign or of the wrong size."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"judge {path}: {error.strerror}; pass a llama2.c .bin") from error
        self.config = _read_config(data, path)
        shapes = dict(_weight_shapes(self.config))
        expected = 28 + 4 * sum(int(np.prod(shape)) for shape in shapes.values())
        if len(data) != expected:
            raise DataError(f"{path}: wanted {expected} bytes of llama2.c v0, found {len(data)}")
        flat, offset = np.frombuffer(data, dtype="<f4", offset=28), 0
        self._weights: dict[str, Array] = {}
        for name, shape in shapes.items():
            size = int(np.prod(shape))
            self._weights[name] = flat[offset : offset + size].reshape(shape)
            offset += size

    def _attention(self, x: Array, layer: int) -> Array:
        """Causal grouped-query attention, x: (B, T, dim) float32, without the residual."""
        c, w = self.config, self._weights
        batch, length, _ = x.shape
        group = c.num_heads // c.num_kv_heads
        q = _rotate((x @ w["wq"][layer].T).reshape(batch, length, c.num_heads, c.head_dim))
        k = _rotate((x @ w["wk"][layer].T).reshape(batch, length, c.num_kv_heads, c.head_dim))
        v = (x @ w["wv"][layer].T).reshape(batch, length, c.num_kv_heads, c.head_dim)
        q = q.transpose(0, 2, 1, 3).reshape(batch, c.num_kv_heads, group * length, c.head_dim)
        scores = q @ k.transpose(0, 2, 3, 1) / np.float32(np.sqrt(c.head_dim))
        scores = scores.reshape(batch, c.num_heads, length, length)
        future = np.triu(np.full((length, length), -np.inf, np.float32), 1)
        scores += future
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(-1, keepdims=True)
        weights = scores.reshape(batch, c.num_kv_heads, group * length, length)
        mixed = (weights @ v.transpose(0, 2, 1, 3)).reshape(batch, c.num_heads, length, c.head_dim)
        return mixed.transpose(0, 2, 1, 3).reshape(batch, length, c.dim) @ w["wo"][layer].T

    def logits(self, ids: NDArray[np.int64]) -> Array:
        """Maps ids (B, T) int64, T at most seq_len, to logits (B, T, vocab_size) float32."""
        w = self._weights
        x = w["embedding"][ids]
        for layer in range(self.config.num_layers):
            x = x + self._attention(_norm(x, w["attention_norm"][layer]), layer)
            h = _norm(x, w["ffn_norm"][layer])
            gate = h @ w["w1"][layer].T
            # exp may overflow to inf for very negative gates: silu is then exactly -0.
            with np.errstate(over="ignore"):
                gate /= 1 + np.exp(-gate)
            x = x + (gate * (h @ w["w3"][layer].T)) @ w["w2"][layer].T
        return _norm(x, w["final_norm"]) @ w.get("head", w["embedding"]).T


@dataclass(frozen=True, slots=True, kw_only=True)
class TextScore:
    """What the judge says about one text."""

    nats: float
    """Negative log-likelihood of all tokens."""
    num_tokens: int
    """Scored tokens (BOS is given)."""


class Judge:
    """Scores texts."""

    def __init__(self, model_path: str | Path, tokenizer_path: str | Path | None = None) -> None:
        """Opens a model and its tokenizer, by default `tok<vocab_size>.bin` beside the model."""
        self.model = JudgeModel(Path(model_path))
        vocab_size = self.model.config.vocab_size
        beside = Path(model_path).parent / f"tok{vocab_size}.bin"
        self.tokenizer = JudgeTokenizer(Path(tokenizer_path or beside), vocab_size)

    def score(self, texts: Sequence[str]) -> list[TextScore]:
        """Scores each text on its own; an empty one has zero tokens."""
        room = self.model.config.seq_len - 1
        pieces: list[tuple[int, list[int]]] = []
        for index, text in enumerate(texts):
            ids = self.tokenizer.encode(text)
            pieces += [(index, ids[i : i + room]) for i in range(0, len(ids), room)]
        # Neighbours of equal length share a batch, so little is spent on padding.
        pieces.sort(key=lambda piece: len(piece[1]))
        nats, counts = np.zeros(len(texts)), np.zeros(len(texts), dtype=np.int64)
        start = 0
        while start < len(pieces):
            stop = start + 1
            while (
                stop < len(pieces)
                and (stop + 1 - start) * (len(pieces[stop][1]) + 1) <= TOKENS_PER_BATCH
            ):
                stop += 1
            batch = pieces[start:stop]
            for (index, ids), value in zip(batch, self._batch_nats(batch), strict=True):
                nats[index] += value
                counts[index] += len(ids)
            start = stop
        return [
            TextScore(nats=float(n), num_tokens=int(c)) for n, c in zip(nats, counts, strict=True)
        ]

    def _batch_nats(self, batch: Sequence[tuple[int, list[int]]]) -> NDArray[np.float64]:
        """Nats of each piece; padding stands behind the last token, where no one looks back."""
        lengths = np.array([len(ids) for _, ids in batch])
        canvas = np.full((len(batch), int(lengths.max()) + 1), BOS, dtype=np.int64)
        for row, (_, ids) in enumerate(batch):
            canvas[row, 1 : len(ids) + 1] = ids
        logits = self.model.logits(canvas[:, :-1])
        logits -= logits.max(-1, keepdims=True)
        chosen = np.take_along_axis(logits, canvas[:, 1:, None], axis=-1)[..., 0]
        nll = np.log(np.exp(logits).sum(-1)) - chosen
        scored = np.arange(canvas.shape[1] - 1) < lengths[:, None]
        return np.where(scored, nll, 0).sum(axis=1, dtype=np.float64)


def perplexity(scores: Sequence[TextScore]) -> float:
    """Perplexity per judge token over all texts together; nan without a token."""
    num_tokens = sum(score.num_tokens for score in scores)
    if not num_tokens:
        return float("nan")
    return float(np.exp(sum(score.nats for score in scores) / num_tokens))
