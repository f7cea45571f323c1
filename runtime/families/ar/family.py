"""The causal baseline on the device: graph `denoise`, decoded token by token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ...bundle.manifest import GraphSpec, Manifest
from ...decoding import DecodingRule
from ..base import Buckets, DeviceFamily, LoadedModel, Request, UpdateRule, WindowSize
from ..causal import (
    CausalRule,
    cached_shapes,
    causal_capacity,
    causal_likelihood,
    causal_runs,
    causal_windows,
    check_causal_request,
)
from ..next_token import NextToken


class CausalFamily(DeviceFamily):
    """What the table of families holds for `ar`."""

    name = "ar"
    exact = True

    def start(self, model: LoadedModel, request: Request) -> UpdateRule:
        manifest = model.manifest
        check_causal_request(manifest, request)
        settings = model.settings(request.settings)
        assert isinstance(settings, NextToken)
        return CausalRule(model, request, settings)

    def blocks(self, manifest: Manifest, specs: Sequence[GraphSpec]) -> Mapping[int, Buckets]:
        """See DeviceFamily; a text goes token by token."""
        del manifest, specs
        return {}

    def runs(
        self,
        manifest: Manifest,
        specs: Sequence[GraphSpec],
        *,
        block: int | None,
        positions: int,
        tokens_per_run: float,
    ) -> Iterator[tuple[GraphSpec, float]]:
        del manifest, block
        return causal_runs(specs, positions, tokens_per_run)

    def text_rows(self, spec: GraphSpec) -> int:
        """See DeviceFamily: the newest token's."""
        del spec
        return 1

    def windows(
        self, manifest: Manifest, specs: Sequence[GraphSpec], block_size: int | None
    ) -> WindowSize:
        return causal_windows(manifest, specs, block_size)

    def positions(
        self, manifest: Manifest, specs: Sequence[GraphSpec], settings: DecodingRule
    ) -> int:
        """See DeviceFamily: the newest token needs no place in the cache."""
        return min(causal_capacity(cached_shapes(specs), manifest) + 1, manifest.max_position)

    def bound(
        self,
        model: LoadedModel,
        windows: Sequence[np.ndarray],
        *,
        seed: int,
        samples: range,
        block_size: int | None = None,
    ) -> Iterator[np.ndarray]:
        """See DeviceFamily; seed and block_size change nothing, the likelihood is exact."""
        return causal_likelihood(model, windows, samples=samples)
