"""The family `sedd` on the device: score-entropy diffusion with a uniform or an absorbing graph.

The update rule is in `rule`, the decoding rules in `rules`, the bound in `bound`, the formulas of a
step in `noise.transition`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ...bundle.manifest import Manifest
from ...errors import ConfigError
from ...noise.transition import GRAPHS
from ..base import LoadedModel, Request, UpdateRule
from ..whole_canvas import WholeCanvasFamily
from ..window import check_request
from .bound import score_bound
from .rule import GRAPH, ScoreRule
from .rules import ScoreDecoding


class ScoreFamily(WholeCanvasFamily):
    """What the table of families holds for `sedd`."""

    name = "sedd"
    graph = GRAPH

    def start(self, model: LoadedModel, request: Request) -> UpdateRule:
        manifest = model.manifest
        check_manifest(manifest)
        check_request(manifest, request)
        settings = model.settings(request.settings)
        assert isinstance(settings, ScoreDecoding)
        return ScoreRule(model, request, settings)

    def noise_level(self, inputs: Mapping[str, np.ndarray]) -> float | None:
        """Gives 1 - exp(-sigma)."""
        return float(-np.expm1(-np.max(inputs["sigma"])))

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
        self._check_windows(model, windows, block_size)
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
