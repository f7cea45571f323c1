"""The family `sedd` on the device: score-entropy diffusion with a uniform or an absorbing graph.

The update rule is in `rule`, the decoding rules in `rules`, the bound in `bound`, the formulas of a
step in `noise.transition`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ...bundle.manifest import GraphSpec, Manifest
from ...decoding import DecodingRule
from ...errors import ConfigError
from ...noise.transition import GRAPHS
from ..base import Buckets, DeviceFamily, LoadedModel, Request, UpdateRule, WindowSize
from ..window import by_rows, check_request, choose_block, default_block
from .bound import score_bound
from .rule import GRAPH, ScoreRule, window_size
from .rules import ScoreDecoding


class ScoreFamily(DeviceFamily):
    """What the table of families holds for `sedd`."""

    name = "sedd"
    exact = False

    def start(self, model: LoadedModel, request: Request) -> UpdateRule:
        manifest = model.manifest
        check_manifest(manifest)
        check_request(manifest, request)
        settings = model.settings(request.settings)
        assert isinstance(settings, ScoreDecoding)
        return ScoreRule(model, request, settings)

    def positions(
        self, manifest: Manifest, specs: Sequence[GraphSpec], settings: DecodingRule
    ) -> int:
        """See DeviceFamily: the canvas asked for, else the longest one."""
        assert isinstance(settings, ScoreDecoding)
        shapes = by_rows(specs, GRAPH)
        return window_size(shapes, max(shapes), settings.block_size)

    def blocks(self, manifest: Manifest, specs: Sequence[GraphSpec]) -> Mapping[int, Buckets]:
        """See DeviceFamily: the lengths of canvases."""
        del manifest
        return by_rows(specs, GRAPH)

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
        shapes = by_rows(specs, GRAPH)
        size = window_size(shapes, positions, block)
        # Behind the first canvas each one makes half of its positions.
        canvases = 1 + max(0, -(-2 * (positions - size) // size))
        yield shapes[size][0], canvases * max(1.0, size / tokens_per_run)

    def noise_level(self, inputs: Mapping[str, np.ndarray]) -> float | None:
        """Gives 1 - exp(-sigma)."""
        return float(-np.expm1(-np.max(inputs["sigma"])))

    def text_rows(self, spec: GraphSpec) -> int:
        """See DeviceFamily: all of them."""
        return spec.rows

    def windows(
        self, manifest: Manifest, specs: Sequence[GraphSpec], block_size: int | None
    ) -> WindowSize:
        """See DeviceFamily: a window is one canvas."""
        shapes, asked = by_rows(specs, GRAPH), block_size or default_block(manifest)
        block = choose_block(shapes, asked, manifest.block_sizes)
        return WindowSize(block, min(manifest.max_position, block))

    def bound(
        self,
        model: LoadedModel,
        windows: Sequence[np.ndarray],
        *,
        seed: int,
        samples: range,
        block_size: int | None = None,
    ) -> Iterator[np.ndarray]:
        """See DeviceFamily; a window is one canvas, so that block_size follows from its length."""
        check_manifest(model.manifest)
        lengths = by_rows(model.specs, GRAPH)
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
        return score_bound(model, windows, seed=seed, samples=samples)


def check_manifest(manifest: Manifest) -> None:
    """Raises ConfigError for models that this family cannot decode."""
    graph = manifest.model.get("graph")
    if graph not in GRAPHS:
        raise ConfigError(
            f"the bundle's noise graph is {graph!r}, sedd has {' and '.join(GRAPHS)}; "
            "export it again"
        )
    if manifest.mask_token_id is None:
        raise ConfigError("the bundle names no mask token, which sedd needs; export it again")
