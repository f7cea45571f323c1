"""Latent diffusion on the device: a run estimates a canvas's clean latents, a step moves it there.

| run | reads | afterwards |
|---|---|---|
| embed | ids of the canvas | latents of given positions are kept |
| denoise, guided | latents, which are given, noise level, last estimate | the step of the rule |

Given positions (the prompt, a template's text) are put back after every step. The last run's logits
are rounded to tokens, by temperature, top-k and top-p; nothing is committed before. In the last
steps an estimate may be clamped: it becomes the mean embedding it rounds to, or the nearest. Who
watches a canvas sees each step's estimate rounded, as the last one will be. How a text becomes
canvases stands in `whole_canvas`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ...bundle.manifest import GraphSpec
from ...engines.base import Engine
from ...errors import ConfigError
from ...noise.latent import LatentSchedule, step_table
from ...ops.latent import LATENT
from ...ops.latent.contract import LatentSpec
from ...ops.unmask import UNMASK
from ...ops.unmask.contract import Kind, Score, Selection, UnmaskCanvas, UnmaskSpec
from ..base import LoadedModel, Request, Span
from ..text_rule import end_ids, undrawable_ids
from ..whole_canvas import WholeCanvasRule
from ..window import by_rows
from .rules import Ddim, LatentDecoding

GRAPH, GUIDED, EMBED = "denoise", "guided", "embed"
ALL_AT_ONCE = Selection(kind=Kind.QUOTA, score=Score.CONFIDENCE, steps=1)


class LatentRule(WholeCanvasRule[UnmaskCanvas]):
    """One text; its canvas of ids is filled by rounding."""

    def __init__(self, model: LoadedModel, request: Request, settings: LatentDecoding) -> None:
        """Makes the first canvas; raises ConfigError if the request cannot be served."""
        manifest, ops = model.manifest, model.ops
        graph = graph_for(model.specs, settings.guidance)
        self._step = self._choose(model, request, graph, settings.block_size)
        self._embed = by_rows(model.specs, EMBED)[self._block][0]
        self._roles = {tensor.role: tensor.name for tensor in self._step.inputs}
        eta = settings.eta if isinstance(settings, Ddim) else 0.0
        schedule = LatentSchedule.from_json(manifest.noise_schedule)
        table = step_table(schedule, settings.name, settings.steps, eta)
        self._clamped = clamps(settings)
        """Name of the output that is the estimate, per step."""
        self._moving, self._committing = ops.bind(LATENT), ops.bind(UNMASK)
        self._latents = self._moving.canvas(
            LatentSpec(
                rows=self._block,
                width=self._step.tensor("canvas").shape[-1],
                table=table,
                guidance=settings.guidance,
                seed=request.seed,
                sample_index=request.sample_index,
            )
        )
        self._canvas = self._committing.canvas(
            UnmaskSpec(
                block=self._block,
                vocab_size=manifest.vocab_size,
                sampling=settings.sampling,
                seed=request.seed,
                sample_index=request.sample_index,
                mask_token_id=self._mask,
                end_ids=end_ids(manifest, request),
                banned=undrawable_ids(manifest, request),
                selection=ALL_AT_ONCE,
            )
        )
        self._open()

    @property
    def phase(self) -> str:
        return "denoise" if self._embedded else "prefill"

    def next_run(self) -> GraphSpec:
        return self._step if self._embedded else self._embed

    def feed(self, engine: Engine) -> None:
        if not self._embedded:
            (name,) = engine.inputs
            self._ops.assign(engine.inputs[name], np.where(self._free, 0, self._given))
            return
        canvas = self._latents
        sources = {
            "canvas": canvas.latents,
            "known": canvas.known,
            "level": canvas.level,
            "before": canvas.before,
            "guidance": canvas.guidance,
        }
        for role, name in self._roles.items():
            self._ops.assign(engine.inputs[name], sources[role])

    def update(self, engine: Engine) -> None:
        if not self._embedded:
            self._moving.give(engine.outputs[engine.spec.tensor("embedded").name], self._latents)
            return
        output = engine.spec.tensor(self._clamped[self._latents.step]).name
        self._moving.move(engine.outputs[output], self._latents)
        if self._latents.finished or self._request.provisional:
            self._begin_rounding()
            logits = engine.outputs[engine.spec.tensor("logits").name]
            self._committing.sample(logits, self._canvas)
            self._committing.commit(self._canvas)

    def read(self) -> Sequence[Span]:
        if not self._embedded:
            self._embedded = True
            return []
        finished = self._latents.finished
        if finished:
            self._moving.check(self._latents)
        if not finished and not self._request.provisional:
            self._moving.flush(self._latents)
            return []
        progress = self._committing.progress(self._canvas, exact=True)
        if not finished:
            return [self._provisional()]
        spans = [*self._new_text(progress)]
        if self._request.provisional:
            spans.append(self._provisional())
        self._finish(progress)
        return spans

    def _begin(self, known: np.ndarray, free: np.ndarray, position: int, *, first: int) -> None:
        self._given = np.full(self._block, self._mask, np.int32)
        self._given[: len(known)] = known
        self._given[free] = self._mask
        self._free, self._place, self._embedded = free, (position, first), False
        self._moving.begin(self._latents, ~free, position=position)

    def _begin_rounding(self) -> None:
        position, first = self._place
        self._committing.begin_block(
            self._canvas, self._given, self._free, position=position, first=first
        )


def graph_for(specs: Sequence[GraphSpec], guidance: float) -> str:
    """Gives the graph that a step runs; ConfigError for guidance that the model cannot have."""
    if guidance == 1.0:
        return GRAPH
    if not any(spec.name == GUIDED for spec in specs):
        raise ConfigError(
            f"guidance {guidance:g} needs a model that also learnt without its prompt, and this "
            "one did not; leave it out, or train with --condition-dropout above 0"
        )
    return GUIDED


def clamps(settings: LatentDecoding) -> tuple[str, ...]:
    """Gives, per step, the role of the output that is taken for the estimate."""
    steps = settings.steps
    nearest = steps - math.ceil(settings.clamp_nearest * steps)
    expected = steps - math.ceil(settings.clamp_expected * steps)

    def role(step: int) -> str:
        if step >= nearest:
            return "nearest"
        return "expected" if step >= expected else "clean"

    return tuple(map(role, range(steps)))
