"""The likelihood bound of score-entropy diffusion, by Monte-Carlo over noised texts.

-log p(x) <= integral of E[sum over positions of SE] d sigma + prior term, with SE the score entropy
of `score_entropy`; a window is one canvas. The integral does not depend on the schedule, so that
sigma is drawn where it lowers the variance most.

**absorb**: with m = 1 - exp(-sigma), the integral is that of SE odds / m over m from 0 to 1, which
is masked diffusion's bound with SE odds for a cross-entropy; so it is drawn alike (see
`likelihood`): a count k, uniform on 1..M, then a set of k positions, with the weight M / k, and m
given k, the k-th smallest of M uniforms. Equal seeds mask the same positions as the bound of a
masked model on the same windows.

**uniform**: the M scored positions are hit by noise independently, each with chance m, and a hit
position takes any state. Below sigma = 3 the pair (m, k hits) is drawn by count, too: k uniform on
0..M, m the k-th smallest of M uniforms (k = 0: the smallest of M + 1), which the importance weight
(M + 1) m / k (k = 0: 1) makes exact; hits then cost about the same whatever the noise, while a
plain draw of sigma would leave the count's variance in. Above, log sigma is uniform up to
sigma(1). What remains of the text at sigma(1) is the prior term: KL(p(x_1 | x_0) || uniform).

Low discrepancy: the level that decides k (or sigma above 3) goes once through n strata over n
windows, in an order of each pair of samples; the second sample of a pair takes the mirrored level.
All draws are Philox's: (seed, sample, position, window).

Source: SEDD (arXiv 2310.16834), theorem 3.6; the drawing by counts is this project's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...bundle.manifest import Manifest
from ...engines.base import Engine
from ...noise.philox import DrawKind, uniforms
from ...noise.schedule import schedule_from_json
from ...noise.score_entropy import absorb_entropy, move_odds, prior_nats, uniform_entropy
from ...ops.core import Ops
from ..base import LoadedModel
from ..likelihood import levels, masked_set
from ..window import banned_ids, by_rows, logits
from .rule import GRAPH, absorbs, num_states

SPLIT = 3.0
"""Noise from which on sigma is drawn by itself: 5 % of the tokens are left."""
TAIL_SHARE = 0.1
"""Share of the draws above SPLIT, where hardly any nats are."""


@dataclass(frozen=True, slots=True)
class Noised:
    """One draw: which positions are hit, at what noise, and what SE weighs then."""

    hit: np.ndarray
    """(k,) indices."""
    sigma: float
    weight: float
    """0: outside the range that this kind of draw covers; nothing is to be run."""


def score_bound(
    model: LoadedModel,
    windows: Sequence[np.ndarray],
    *,
    seed: int,
    samples: range,
) -> Iterator[np.ndarray]:
    """Yields per window (len(samples), L) float64 nats; see DeviceFamily.bound."""
    manifest, engines, ops = model.manifest, model.engines, model.ops
    lengths = by_rows(model.specs, GRAPH)
    level = {sample: levels(len(windows), seed, sample) for sample in samples}
    last = float(schedule_from_json(manifest.noise_schedule).sigma(1.0))
    measure = _absorb_nats if absorbs(manifest) else _uniform_nats
    for number, window in enumerate(windows):
        nats = np.zeros((len(samples), len(window)))
        engine = engines.engine(lengths[len(window)][0])
        for row, sample in enumerate(samples):
            share = float(level[sample][number])
            places = np.arange(len(window))
            draws = uniforms(seed, sample, places, number, DrawKind.CORRUPT)
            if absorbs(manifest):
                noised = draw_masks(draws, share)
            else:
                noised = draw_hits(draws, share, last)
                nats[row, 1:] = prior_nats(last, num_states(manifest))
            if noised.weight:
                replaced = uniforms(seed, sample, places, number, DrawKind.NOISE)
                nats[row] += measure(manifest, ops, engine, window, noised, replaced)
        yield nats


def draw_masks(draws: np.ndarray, level: float) -> Noised:
    """Draws the masks of graph `absorb`; draws are (L,) float64, position 0 is given."""
    masked, weight = masked_set(draws, 0, level)
    chance = float(draws[masked].max()) if len(masked) else 0.0
    return Noised(masked, -math.log1p(-chance), weight if chance else 0.0)


def draw_hits(draws: np.ndarray, level: float, last: float) -> Noised:
    """Draws the hits of graph `uniform`.

    Args:
        draws: (L,) float64 uniforms; position 0 is given, its uniform serves k = 0.
        level: In [0, 1).
        last: sigma(1).
    """
    count, tail = len(draws) - 1, TAIL_SHARE if last > SPLIT else 0.0
    if not count:
        return Noised(np.zeros(0, np.int64), 0.0, 0.0)
    if level >= 1.0 - tail:
        ratio = math.log(last / SPLIT)
        sigma = SPLIT * math.exp(ratio * (level - (1.0 - tail)) / tail)
        hit = 1 + np.flatnonzero(draws[1:] < -math.expm1(-sigma))
        return Noised(hit, sigma, sigma * ratio / tail)
    hits = min(int(level / (1.0 - tail) * (count + 1)), count)
    order = np.argsort(draws[1:], kind="stable")
    hit = 1 + np.sort(order[:hits])
    chance = float(draws[hit].max()) if hits else float(draws.min())
    sigma = -math.log1p(-chance)
    if not 0.0 < sigma <= min(SPLIT, last):
        return Noised(hit, sigma, 0.0)
    weight = (count + 1) * chance / hits if hits else 1.0
    return Noised(hit, sigma, weight / (1.0 - chance) / (1.0 - tail))


def _run(ops: Ops, engine: Engine, ids: np.ndarray, sigma: float) -> np.ndarray:
    """Runs the graph; gives its log-scores, (L, V)."""
    spec = engine.spec
    ops.assign(engine.inputs[spec.tensor("canvas").name], ids)
    ops.assign(engine.inputs[spec.tensor("sigma").name], np.array([sigma], np.float32))
    engine.run()
    return ops.to_host(logits(engine)).reshape(len(ids), -1)


def _absorb_nats(
    manifest: Manifest,
    ops: Ops,
    engine: Engine,
    window: np.ndarray,
    noised: Noised,
    replaced: np.ndarray,
) -> np.ndarray:
    """Gives the weighted score entropy of every position, (L,) float64."""
    del replaced
    ids = window.copy()
    ids[noised.hit] = manifest.mask_token_id
    rows = _run(ops, engine, ids, noised.sigma)[noised.hit].astype(np.float32)
    at_x0 = rows[np.arange(len(rows)), window[noised.hit]].astype(np.float64)
    rows[:, list(banned_ids(manifest))] = -np.inf
    total = np.exp(rows, out=rows).sum(axis=1, dtype=np.float64)
    nats = np.zeros(len(window))
    entropy = absorb_entropy(total, at_x0, noised.sigma)
    nats[noised.hit] = noised.weight * move_odds(noised.sigma) * entropy
    return nats


def _uniform_nats(
    manifest: Manifest,
    ops: Ops,
    engine: Engine,
    window: np.ndarray,
    noised: Noised,
    replaced: np.ndarray,
) -> np.ndarray:
    """Gives the weighted score entropy of every position, (L,) float64."""
    banned = list(banned_ids(manifest))
    states = np.setdiff1d(np.arange(manifest.vocab_size), banned).astype(np.int32)
    ids = window.copy()
    ids[noised.hit] = states[(replaced[noised.hit] * len(states)).astype(np.int64)]
    rows = _run(ops, engine, ids, noised.sigma)[1:].astype(np.float32)
    index = np.arange(len(rows))
    rows[:, banned] = 0.0
    rows[index, ids[1:]] = 0.0
    linear = rows.sum(axis=1, dtype=np.float64)
    at_x0 = rows[index, window[1:]].astype(np.float64)
    rows[:, banned] = -np.inf
    rows[index, ids[1:]] = -np.inf
    total = np.exp(rows, out=rows).sum(axis=1, dtype=np.float64)
    changed = (ids[1:] != window[1:]).astype(np.float64)
    entropy = uniform_entropy(total, linear, at_x0, changed, noised.sigma, len(states))
    return np.concatenate([[0.0], noised.weight * entropy])
