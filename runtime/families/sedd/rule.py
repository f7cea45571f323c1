"""Score-entropy diffusion on the device: every run moves all free positions of a whole canvas.

| run | canvas | sigma | afterwards |
|---|---|---|---|
| score | given ids, the rest uniform noise or MASK | of the step | free positions move or stay |

Given positions (the prompt, a template's text) are never free: that is their re-projection after
every step. Under the uniform graph a position may move again until the last step, so that early
tokens are corrected; nothing is committed before. Under absorb a position settles once it leaves
MASK, and leading text is committed as it settles.

How a text becomes canvases stands in `whole_canvas`.

Source: SEDD (arXiv 2310.16834), section 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...bundle.manifest import GraphSpec, Manifest
from ...engines.base import Engine
from ...noise.philox import DrawKind, uniforms
from ...noise.schedule import schedule_from_json
from ...noise.transition import transition_table
from ...ops.transition import TRANSITION
from ...ops.transition.contract import TransitionCanvas, TransitionSpec
from ..base import LoadedModel, Request, Span
from ..text_rule import end_ids, undrawable_ids
from ..whole_canvas import WholeCanvasRule
from ..window import banned_ids
from .rules import ScoreDecoding

GRAPH = "score"


class ScoreRule(WholeCanvasRule[TransitionCanvas]):
    """One text; see the module's documentation."""

    def __init__(
        self,
        model: LoadedModel,
        request: Request,
        settings: ScoreDecoding,
    ) -> None:
        """Makes the first canvas; raises ConfigError if the request cannot be served."""
        manifest, ops = model.manifest, model.ops
        self._spec = self._choose(model, request, GRAPH, settings.block_size)
        self._absorbs = absorbs(manifest)
        roles = ("canvas", "sigma", "logits")
        self._names = {role: self._spec.tensor(role).name for role in roles}
        banned = undrawable_ids(manifest, request)
        states = np.ones(manifest.vocab_size, bool)
        states[list(banned)] = False
        self._states = np.flatnonzero(states).astype(np.int32)
        self._num_steps = settings.steps or self._block
        self._committing = ops.bind(TRANSITION)
        spec = TransitionSpec(
            block=self._block,
            vocab_size=manifest.vocab_size,
            sampling=settings.sampling,
            seed=request.seed,
            sample_index=request.sample_index,
            mask_token_id=self._mask if self._absorbs else -1,
            end_ids=end_ids(manifest, request),
            banned=banned,
            transition=transition_table(
                schedule_from_json(manifest.noise_schedule),
                manifest.model["graph"],
                settings.name,
                self._num_steps,
                num_states(manifest),
            ),
        )
        self._canvas = self._committing.canvas(spec)
        self._open()

    def next_run(self) -> GraphSpec:
        return self._spec

    def feed(self, engine: Engine) -> None:
        self._ops.assign(engine.inputs[self._names["canvas"]], self._canvas.ids)
        self._ops.assign(engine.inputs[self._names["sigma"]], self._canvas.sigma)

    def update(self, engine: Engine) -> None:
        self._committing.sample(engine.outputs[self._names["logits"]], self._canvas)
        self._committing.commit(self._canvas)

    def read(self) -> Sequence[Span]:
        # Of the last step nothing but its own report tells that all is done.
        last = self._canvas.place.step >= self._num_steps
        progress = self._committing.progress(self._canvas, exact=last)
        finished = progress.num_masked == 0
        spans = []
        if finished or (self._absorbs and self._ops.synchronous):
            spans.extend(self._new_text(progress))
        if self._request.provisional:
            spans.append(self._provisional())
        if finished:
            self._finish(progress)
        return spans

    def _begin(self, known: np.ndarray, free: np.ndarray, position: int, *, first: int) -> None:
        """Starts a canvas: known ids, and noise at the free positions."""
        ids = np.zeros(self._block, np.int32)
        ids[: len(known)] = known
        if self._absorbs:
            ids[free] = self._mask
        else:
            places = position + np.flatnonzero(free)
            request = self._request
            draws = uniforms(request.seed, request.sample_index, places, 0, DrawKind.NOISE)
            ids[free] = self._states[(draws * len(self._states)).astype(np.int64)]
        self._committing.begin_block(self._canvas, ids, free, position=position, first=first)


def absorbs(manifest: Manifest) -> bool:
    """Tells whether noise masks positions (graph `absorb`) rather than replacing tokens."""
    return manifest.model["graph"] == "absorb"


def num_states(manifest: Manifest) -> int:
    """Gives the number of tokens that noise and text are made of: all but mask and padding."""
    return manifest.vocab_size - len(banned_ids(manifest))
