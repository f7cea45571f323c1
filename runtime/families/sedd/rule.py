"""Score-entropy diffusion on the device: every run moves all free positions of a whole canvas.

| run | canvas | sigma | afterwards |
|---|---|---|---|
| score | given ids, the rest uniform noise or MASK | of the step | free positions move or stay |

Given positions (the prompt, a template's text) are never free: that is their re-projection after
every step. Under the uniform graph a position may move again until the last step, so that early
tokens are corrected; nothing is committed before. Under absorb a position settles once it leaves
MASK, and leading text is committed as it settles.

The canvas is the smallest on offer that holds the whole text; what it has beyond the text is
denoised along and dropped. A text longer than the largest canvas goes on in a window: as much of
its end as leaves half of the window to new text is kept as given, the rest is dropped, and
`approximate` is set. Draws are keyed by absolute positions.

Infilling takes the smallest canvas, too; an end-of-text token stands fixed behind the text, unless
the text ends with one.

Source: SEDD (arXiv 2310.16834), section 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...bundle.manifest import GraphSpec, Manifest
from ...engines.base import Engine
from ...noise.philox import DrawKind, uniforms
from ...noise.schedule import schedule_from_json
from ...noise.transition import transition_table
from ...ops.core import Progress
from ...ops.transition import TRANSITION
from ...ops.transition.contract import TransitionCanvas, TransitionSpec
from ..base import Buckets, LoadedModel, Request, Span
from ..text_rule import CanvasRule, end_ids, undrawable_ids
from ..window import Text, banned_ids, by_rows, canvas_block, choose_block
from .rules import ScoreDecoding

GRAPH = "score"


class ScoreRule(CanvasRule[TransitionCanvas]):
    """One text being denoised as a whole; see the module's documentation."""

    def __init__(
        self,
        model: LoadedModel,
        request: Request,
        settings: ScoreDecoding,
    ) -> None:
        """Makes the first canvas; raises ConfigError if the request cannot be served."""
        manifest, ops = model.manifest, model.ops
        self._ops, self._request, self._manifest = ops, request, manifest
        assert manifest.mask_token_id is not None
        self._mask, self._absorbs = manifest.mask_token_id, absorbs(manifest)
        template = request.template_ids
        shapes = by_rows(model.specs, GRAPH)
        if template is None:
            self._text = Text(request.prompt_ids, len(request.prompt_ids) + request.max_tokens)
            self._block = window_size(shapes, self._text.limit, settings.block_size)
        else:
            self._text = Text((), len(template))
            self._block = canvas_block(shapes, len(template))
        self._spec = shapes[self._block][0]
        roles = ("canvas", "sigma", "logits")
        self._names = {role: self._spec.tensor(role).name for role in roles}
        self._num_given = len(request.prompt_ids) if template is None else 0
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
        if template is not None:
            self._begin_infill(np.array(template, np.int32))
        elif self._text.num_known >= self._text.limit:
            self._done = True
        else:
            self._begin_window()

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

    def _begin_window(self) -> None:
        """Opens a canvas over the known end of the text and what comes behind it."""
        needed = self._text.limit - self._text.num_known
        keep = max(self._block - needed, self._block // 2)
        if len(self._text.window) > keep:
            self._text.slide(keep)
            self._approximate = True
        known = self._text.window
        free = np.arange(self._block) >= len(known)
        self._begin(known, free, self._text.offset, first=len(known))

    def _begin_infill(self, template: np.ndarray) -> None:
        known = template
        eos = self._manifest.eos_token_id
        if len(template) < self._block and template[-1] != eos:
            known = np.append(template, np.int32(eos))
        free = np.ones(self._block, bool)
        free[: len(known)] = known == self._mask
        if (template == self._mask).any():
            self._begin(known, free, 0, first=0)
        else:
            self._text.extend(0, template)
            self._done = True

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

    def _finish(self, progress: Progress) -> None:
        # An end token beyond the limit is no part of the text.
        inside = self._canvas.place.position + progress.num_final < self._text.limit
        self._ended = progress.ended and inside
        if self._ended or self._text.num_known >= self._text.limit:
            self._done = True
        else:
            self._begin_window()


def absorbs(manifest: Manifest) -> bool:
    """Tells whether noise masks positions (graph `absorb`) rather than replacing tokens."""
    return manifest.model["graph"] == "absorb"


def num_states(manifest: Manifest) -> int:
    """Gives the number of tokens that noise and text are made of: all but mask and padding."""
    return manifest.vocab_size - len(banned_ids(manifest))


def window_size(shapes: Mapping[int, Buckets], length: int, asked: int | None) -> int:
    """Gives the canvas asked for, else the smallest that holds a text, else the largest."""
    if asked is not None:
        return choose_block(shapes, asked)
    return min((block for block in shapes if block >= length), default=max(shapes))
