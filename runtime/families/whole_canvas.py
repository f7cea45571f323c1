"""What families share that denoise a text as one canvas, without a cache.

The canvas is the smallest on offer that holds the whole text; what it has beyond the text is
denoised along and dropped. A text longer than the largest canvas goes on in a window: as much of
its end as leaves half of the window to new text is kept as given, the rest is dropped, and
`approximate` is set. Draws are keyed by absolute positions.

Infilling takes the smallest canvas, too; an end-of-text token stands fixed behind the text, unless
the text ends with one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..bundle.manifest import GraphSpec, Manifest
from ..decoding import BlockRule, DecodingRule
from ..errors import ConfigError
from ..ops.canvas.contract import CanvasT
from ..ops.core import Progress
from .base import Buckets, DeviceFamily, LoadedModel, Request, WindowSize
from .text_rule import CanvasRule
from .window import Text, by_rows, canvas_block, choose_block, default_block


class WholeCanvasRule(CanvasRule[CanvasT]):
    """One text being denoised canvas by canvas; see the module's documentation."""

    _manifest: Manifest
    _request: Request

    @abstractmethod
    def _begin(self, known: np.ndarray, free: np.ndarray, position: int, *, first: int) -> None:
        """Starts a canvas.

        Args:
            known: (k,) int32 ids of the canvas's first positions.
            free: (block,) bool: positions to denoise.
            position: Absolute position of the canvas's first token.
            first: Index of the first generated position.
        """

    def _choose(
        self, model: LoadedModel, request: Request, graph: str, asked: int | None
    ) -> GraphSpec:
        """Takes the request's text, and gives the graph's shape of the canvas that fits it."""
        manifest, template = model.manifest, request.template_ids
        assert manifest.mask_token_id is not None
        self._ops, self._request, self._manifest = model.ops, request, manifest
        self._mask = manifest.mask_token_id
        shapes = by_rows(model.specs, graph)
        if template is None:
            self._text = Text(request.prompt_ids, len(request.prompt_ids) + request.max_tokens)
            self._block = window_size(shapes, self._text.limit, asked)
            self._num_given = len(request.prompt_ids)
        else:
            self._text = Text((), len(template))
            self._block = canvas_block(shapes, len(template))
            self._num_given = 0
        return shapes[self._block][0]

    def _open(self) -> None:
        """Begins the first canvas, if there is anything to write."""
        template = self._request.template_ids
        if template is not None:
            self._begin_infill(np.array(template, np.int32))
        elif self._text.num_known >= self._text.limit:
            self._done = True
        else:
            self._begin_window()

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

    def _finish(self, progress: Progress) -> None:
        """Ends a canvas whose text was taken, and the text with it if nothing is left to write."""
        # An end token beyond the limit is no part of the text.
        inside = self._canvas.place.position + progress.num_final < self._text.limit
        self._ended = progress.ended and inside
        if self._ended or self._text.num_known >= self._text.limit:
            self._done = True
        else:
            self._begin_window()


class WholeCanvasFamily(DeviceFamily):
    """What such families answer alike."""

    graph: str
    """Name of the graph that a step runs."""
    exact = False

    def positions(
        self, manifest: Manifest, specs: Sequence[GraphSpec], settings: DecodingRule
    ) -> int:
        """See DeviceFamily: the canvas asked for, else the longest one."""
        assert isinstance(settings, BlockRule)
        shapes = by_rows(specs, self.graph)
        return window_size(shapes, max(shapes), settings.block_size)

    def blocks(self, manifest: Manifest, specs: Sequence[GraphSpec]) -> Mapping[int, Buckets]:
        """See DeviceFamily: the lengths of canvases."""
        del manifest
        return by_rows(specs, self.graph)

    def runs(
        self,
        manifest: Manifest,
        specs: Sequence[GraphSpec],
        *,
        block: int | None,
        positions: int,
        tokens_per_run: float,
    ) -> Iterator[tuple[GraphSpec, float]]:
        del manifest
        shapes = by_rows(specs, self.graph)
        size = window_size(shapes, positions, block)
        yield shapes[size][0], canvases(size, positions) * max(1.0, size / tokens_per_run)

    def text_rows(self, spec: GraphSpec) -> int:
        """See DeviceFamily: all of them."""
        return spec.rows

    def windows(
        self, manifest: Manifest, specs: Sequence[GraphSpec], block_size: int | None
    ) -> WindowSize:
        """See DeviceFamily: a window is one canvas."""
        shapes, asked = by_rows(specs, self.graph), block_size or default_block(manifest)
        block = choose_block(shapes, asked, manifest.block_sizes)
        return WindowSize(block, min(manifest.max_position, block))

    def _check_windows(
        self, model: LoadedModel, windows: Sequence[np.ndarray], block_size: int | None
    ) -> None:
        """Raises ConfigError for windows that are not canvases on offer."""
        lengths = by_rows(model.specs, self.graph)
        for window in windows:
            if len(window) not in lengths:
                raise ConfigError(
                    f"windows of {len(window)} tokens need a graph of that length, the bundle has "
                    f"{', '.join(map(str, lengths))}; choose one of these as --context and --block"
                )
            if block_size not in (None, len(window)):
                raise ConfigError(
                    f"a window is one canvas: {len(window)} tokens are not read by blocks of "
                    f"{block_size}; give --block {len(window)}, or leave --context out"
                )


def canvases(size: int, positions: int) -> int:
    """Gives how many canvases a text takes: behind the first each makes half of its positions."""
    return 1 + max(0, -(-2 * (positions - size) // size))


def window_size(shapes: Mapping[int, Buckets], length: int, asked: int | None) -> int:
    """Gives the canvas asked for, else the smallest that holds a text, else the largest."""
    if asked is not None:
        return choose_block(shapes, asked)
    return min((block for block in shapes if block >= length), default=max(shapes))
