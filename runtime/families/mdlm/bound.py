"""The likelihood bound of masked block diffusion, by Monte-Carlo over masks.

-log p(x) <= sum over blocks of E_k [ M / k * sum over the k masked positions of -log p(x_j) ], with
k uniform on 1..M, the masked set uniform among those of size k, and M the positions of the block
that are scored (all but the text's first). This is MDLM's bound E_t[m'(t)/m(t) * CE], with t
integrated out: given t the count of masks is binomial in m(t), and weight times that probability
integrates to 1 / k for every k, whatever the schedule. Sampling k itself leaves out the variance of
the count and of the weight, and no schedule's clipping can bias it. A denoiser that sees time is
told a mask chance drawn given k: Beta(k, M - k + 1), which is the k-th smallest of M uniforms.

Low discrepancy: over all blocks of a text, k / M goes once through n strata of [0, 1), in an order
drawn per pair of samples; the second sample of a pair takes the mirrored k. The set is that of the
k smallest of one uniform per position, the mask chance the k-th smallest. All draws are Philox's:
(seed, sample, position, window).

Source: MDLM (arXiv 2406.07524) equation 10; AO-ARM equality: Ou et al., arXiv 2406.03736.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ...bundle.manifest import Manifest
from ...engines.base import Engine
from ...noise.philox import DrawKind, uniforms
from ...ops.core import Ops
from ..base import Buckets, LoadedModel
from ..likelihood import levels, masked_set, negative_log_likelihood
from ..window import append, banned_ids, bucket, feed, logits


def masked_bound(
    model: LoadedModel,
    windows: Sequence[np.ndarray],
    *,
    seed: int,
    samples: range,
    buckets: Buckets,
) -> Iterator[np.ndarray]:
    """Yields per window (len(samples), L) float64 nats, by blocks of the buckets' rows."""
    manifest, engines, ops = model.manifest, model.engines, model.ops
    block = buckets[0].rows
    counts = [-(-len(window) // block) for window in windows]
    first_block = np.concatenate([[0], np.cumsum(counts)]).astype(int)
    level = {sample: levels(int(first_block[-1]), seed, sample) for sample in samples}
    for number, window in enumerate(windows):
        nats = np.zeros((len(samples), len(window)))
        draws = [
            uniforms(seed, sample, np.arange(len(window)), number, DrawKind.CORRUPT)
            for sample in samples
        ]
        # What speaks for a block's first position; a text's first is not scored.
        before = np.zeros((1, manifest.vocab_size), np.float32) if manifest.logit_shift else None
        for index in range(counts[number]):
            start = index * block
            ids = np.full(block, manifest.mask_token_id, np.int32)
            piece = window[start : start + block]
            ids[: len(piece)] = piece
            engine = engines.engine(bucket(buckets, start))
            for row, sample in enumerate(samples):
                share = float(level[sample][first_block[number] + index])
                draw = draws[row][start : start + len(piece)]
                masked, weight = masked_set(draw, start, share)
                if len(masked):
                    chance = float(draw[masked].max())
                    cost = _cross_entropy(manifest, ops, engine, ids, start, masked, chance, before)
                    nats[row, start + masked] = weight * cost
            if index + 1 < counts[number]:
                engine = engines.engine(bucket(buckets, start + block))
                _commit(ops, engine, ids, start)
                if before is not None:
                    last = ops.rows(logits(engine), block - 1, 1)
                    before = ops.to_host(last).reshape(1, -1).copy()
        yield nats


def _cross_entropy(
    manifest: Manifest,
    ops: Ops,
    engine: Engine,
    ids: np.ndarray,
    start: int,
    masked: np.ndarray,
    chance: float,
    before: np.ndarray | None,
) -> np.ndarray:
    """Runs a block with some positions masked; gives -log p of their true ids, (k,) float64.

    With `before` (1, V), which speaks for the block's first position, row i speaks for i + 1.
    """
    corrupted = ids.copy()
    corrupted[masked] = manifest.mask_token_id
    feed(ops, engine, corrupted, start, time=chance)
    engine.run()
    rows = ops.to_host(logits(engine)).reshape(-1, manifest.vocab_size)
    rows = rows[masked] if before is None else np.concatenate([before, rows])[masked]
    return negative_log_likelihood(rows, ids[masked], banned_ids(manifest))


def _commit(ops: Ops, engine: Engine, ids: np.ndarray, start: int) -> None:
    feed(ops, engine, ids, start)
    engine.run()
    append(ops, engine, start, len(ids))
