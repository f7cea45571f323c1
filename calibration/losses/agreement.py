"""Do two models want the same tokens? By mask ratio on equal canvases, and step by step in decodes.

Canvases are *teacher-forced*: both models see what the floating-point model's own decode (or a
training-style mask) put there, so an early difference does not spoil the later rows. Trajectories
are not: each model follows its own tokens, with equal prompts, seeds and random numbers, which is
what a user sees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...runtime.bundle.manifest import GraphSpec, Manifest, TensorSpec
from ...runtime.errors import CalibrationError
from ...runtime.families.base import HEAD_PHASE, LoadedModel, Phased, Request
from ...runtime.families.heads import Heads
from ...runtime.families.window import banned_ids
from ..canvases.canvases import RecordedRun

TOP = 5
Progress = Callable[[int, int], None]


@dataclass(slots=True)
class Counts:
    """Rows compared, and how many agree."""

    rows: int = 0
    top1: int = 0
    """Rows whose most likely token is the same."""
    top5: float = 0.0
    """Sum over rows of the share of the five most likely tokens that both have among theirs."""

    def add(self, found: np.ndarray, wanted: np.ndarray) -> None:
        """Compares scores (n, V) with their reference."""
        if not len(found):
            return
        count = min(TOP, found.shape[1])
        self.rows += len(found)
        self.top1 += int((found.argmax(axis=1) == wanted.argmax(axis=1)).sum())
        one = np.argpartition(found, -count, axis=1)[:, -count:]
        other = np.argpartition(wanted, -count, axis=1)[:, -count:]
        self.top5 += float((one[:, :, None] == other[:, None, :]).sum()) / count

    def to_json(self) -> dict[str, Any]:
        """Returns the shares for a report."""
        rows = max(self.rows, 1)
        return {"rows": self.rows, "top1": self.top1 / rows, "top5": self.top5 / rows}


@dataclass(slots=True)
class Agreement:
    """Agreement of one model with the floating-point one on a set of canvases."""

    by_decile: dict[int, Counts] = field(default_factory=dict)
    """Tenths of the mask ratio, rounded up."""
    committing: Counts = field(default_factory=Counts)
    """Only rows of decoding steps whose positions were about to be committed."""
    all: Counts = field(default_factory=Counts)

    def to_json(self) -> dict[str, Any]:
        """Returns the figures for a report."""
        return {
            "by_mask_ratio": {
                f"{decile / 10:.1f}": counts.to_json()
                for decile, counts in sorted(self.by_decile.items())
            },
            "about_to_be_committed": self.committing.to_json(),
            "all": self.all.to_json(),
        }


class Reference:
    """The floating-point model's scores on canvases that have scores to compare."""

    def __init__(self, model: LoadedModel, canvases: Sequence[RecordedRun]) -> None:
        """Runs every canvas once; keeps the rows that are compared."""
        manifest = model.manifest
        self._items: list[tuple[RecordedRun, np.ndarray, np.ndarray]] = []
        # Uniform noise replaces tokens instead of masking them: every row is a guess then.
        masks = any(len(_masked_rows(manifest, canvas)) for canvas in canvases)
        for canvas in canvases:
            rows = _masked_rows(manifest, canvas) if masks else np.arange(canvas.spec.rows)
            scores = _scores(model, canvas)
            if len(rows) and scores is not None:
                self._items.append((canvas, rows, scores[rows]))

    def agreement(
        self, model: LoadedModel, progress: Progress = lambda done, total: None
    ) -> Agreement:
        """Compares another model's graphs; raises CalibrationError."""
        result = Agreement()
        for number, (canvas, rows, wanted) in enumerate(self._items):
            scores = _scores(model, canvas)
            assert scores is not None
            found = scores[rows]
            if not np.isfinite(found).all():
                raise CalibrationError(
                    f"graph {canvas.spec.name} gives NaN or infinity once it is quantised or in "
                    "float16, on a canvas where float32 does not: export with --precision fp32"
                )
            counts = result.by_decile.setdefault(canvas.decile, Counts())
            counts.add(found, wanted)
            result.all.add(found, wanted)
            if canvas.source == "decode":
                soon = canvas.committing[rows]
                result.committing.add(found[soon], wanted[soon])
            progress(number + 1, len(self._items))
        return result


def _masked_rows(manifest: Manifest, canvas: RecordedRun) -> np.ndarray:
    """Positions whose scores matter on an id canvas with masks; all of any other canvas."""
    spec = canvas.spec
    ids = next((canvas.inputs[t.name] for t in spec.inputs if t.role == "canvas"), None)
    if ids is None or not np.issubdtype(ids.dtype, np.integer) or ids.shape[1] != spec.rows:
        return np.arange(canvas.spec.rows)
    if any(tensor.role == "visible" for tensor in spec.inputs):
        return np.arange(canvas.spec.rows)  # rows that verify count as much as those that draft
    return np.flatnonzero(ids[0] == manifest.mask_token_id)


def score_tensor(spec: GraphSpec, vocab_size: int) -> TensorSpec | None:
    """Returns a graph's output with one score per position and token, if it has one."""
    for tensor in spec.outputs:
        if len(tensor.shape) == 3 and tensor.shape[1:] == (spec.rows, vocab_size):
            return tensor
    return None


def _scores(model: LoadedModel, canvas: RecordedRun) -> np.ndarray | None:
    """Runs one canvas; returns (rows, V) float32, or None where a graph has no scores.

    What no text contains is never wanted: a score network has 0 for a mask at its own position,
    which is more than any token's log-ratio as long as there is much noise.
    """
    manifest, engines = model.manifest, model.engines
    engine = engines.engine(canvas.spec)
    tensor = score_tensor(engine.spec, manifest.vocab_size)
    apart = any(item.role == "hidden" for item in engine.spec.outputs)
    if tensor is None and not apart:
        return None
    for name, array in canvas.inputs.items():
        engine.inputs[name][...] = array
    engine.run()
    if tensor is None:  # the same model's head makes scores of it
        parts = Heads(engines.specs).all_rows(engines, model.ops, engine, canvas.spec.rows)
        found = np.concatenate([np.array(rows, np.float32) for rows in parts])
    else:
        found = np.array(engine.outputs[tensor.name][0], np.float32)
    found[:, list(banned_ids(manifest))] = np.finfo(np.float32).min
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One decode: the canvas after every step that changed it."""

    states: tuple[np.ndarray, ...]
    """Each (length,) int64; -1 where nothing is written yet."""
    tokens: np.ndarray
    """The finished text."""
    num_given: int
    nfe: int
    """Graph runs, those of a head that is a graph of its own left out."""


def decode_trajectory(model: LoadedModel, request: Request) -> Trajectory:
    """Decodes a request (with `provisional` set) and keeps its canvas after every step."""
    rule = model.start(request)
    phased = rule if isinstance(rule, Phased) else None
    state = np.full(len(request.prompt_ids) + request.max_tokens, -1, np.int64)
    states = []
    nfe = 0
    while not rule.done:
        nfe += phased is None or phased.phase != HEAD_PHASE
        engine = model.engines.engine(rule.next_run())
        rule.feed(engine)
        engine.run()
        rule.update(engine)
        spans = rule.read()
        for span in spans:
            ids = np.asarray(span.token_ids, np.int64)[: len(state) - span.position]
            state[span.position : span.position + len(ids)] = ids
        if spans:
            states.append(state.copy())
    return Trajectory(states=tuple(states), tokens=rule.tokens, num_given=rule.num_given, nfe=nfe)


def trajectory_agreement(
    found: Sequence[Trajectory], wanted: Sequence[Trajectory]
) -> dict[str, Any]:
    """Compares decodes of equal requests.

    Returns:
        `by_step`: for each step, the share of generated positions (of those that either decode has
        written to by then) that hold the same token or mask; decodes that are over keep their last
        canvas. `num_decodes` per step says how many of the reference were still running.
        `same_tokens`: share of equal tokens of the finished texts; `same_texts`: of equal texts.
        `tokens_per_nfe`: generated tokens per graph run of all decodes together, and
        `tokens_per_nfe_of_fp32`: the reference's.
    """
    longest = max((len(item.states) for item in wanted), default=0)
    by_step, running = [], []
    for step in range(longest):
        same = total = 0
        for one, other in zip(found, wanted, strict=True):
            if not one.states or not other.states:
                continue
            a = one.states[min(step, len(one.states) - 1)][other.num_given :]
            b = other.states[min(step, len(other.states) - 1)][other.num_given :]
            written = (a >= 0) | (b >= 0)
            same += int((a[written] == b[written]).sum())
            total += int(written.sum())
        by_step.append(same / total if total else 1.0)
        running.append(sum(len(item.states) > step for item in wanted))
    pairs = list(zip(found, wanted, strict=True))
    return {
        "by_step": by_step,
        "num_decodes": running,
        "same_tokens": float(np.mean([_same_share(a, b) for a, b in pairs])) if pairs else 1.0,
        "same_texts": float(np.mean([np.array_equal(a.tokens, b.tokens) for a, b in pairs]))
        if pairs
        else 1.0,
        "tokens_per_nfe": tokens_per_nfe(found),
        "tokens_per_nfe_of_fp32": tokens_per_nfe(wanted),
    }


def tokens_per_nfe(decodes: Sequence[Trajectory]) -> float:
    """Returns generated tokens per graph run, of all decodes together; 0 without any run."""
    tokens = sum(len(item.tokens) - item.num_given for item in decodes)
    return tokens / max(sum(item.nfe for item in decodes), 1)


def _same_share(one: Trajectory, other: Trajectory) -> float:
    """Share of generated positions with the same token; a missing token differs."""
    a, b = one.tokens[other.num_given :], other.tokens[other.num_given :]
    longest = max(len(a), len(b))
    if not longest:
        return 1.0
    shared = min(len(a), len(b))
    return float((a[:shared] == b[:shared]).sum()) / longest
