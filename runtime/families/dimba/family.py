"""The family `dimba` on the device: diffusion on latents by a bidirectional state-space model.

The update rule is in `rule`, the decoding rules in `rules`, the formulas of a step in
`noise.latent`. There is no likelihood: `bound` gives the cross-entropy of rounding, see there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...bundle.manifest import GraphSpec, Manifest
from ...errors import ConfigError
from ...noise.latent import LatentSchedule
from ...noise.philox import gaussians
from ..base import LoadedModel, Request, UpdateRule
from ..likelihood import levels, negative_log_likelihood
from ..whole_canvas import WholeCanvasFamily, canvases
from ..window import banned_ids, by_rows, check_request
from .rule import EMBED, GRAPH, GUIDED, LatentRule
from .rules import LatentDecoding

NOISE_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Noise angles of the figures per level."""


class LatentFamily(WholeCanvasFamily):
    """What the table of families holds for `dimba`."""

    name = "dimba"
    graph = GRAPH
    figure = "cross-entropy of rounding"

    def start(self, model: LoadedModel, request: Request) -> UpdateRule:
        if model.manifest.mask_token_id is None:
            raise ConfigError("the bundle names no mask token, which dimba needs; export it again")
        check_request(model.manifest, request)
        settings = model.settings(request.settings)
        assert isinstance(settings, LatentDecoding)
        return LatentRule(model, request, settings)

    def runs(
        self,
        manifest: Manifest,
        specs: Sequence[GraphSpec],
        *,
        block: int | None,
        positions: int,
        tokens_per_run: float,
    ) -> Iterator[tuple[GraphSpec, float]]:
        """See DeviceFamily: a look-up per canvas, and its steps."""
        (run,) = super().runs(
            manifest, specs, block=block, positions=positions, tokens_per_run=tokens_per_run
        )
        yield by_rows(specs, EMBED)[run[0].rows][0], float(canvases(run[0].rows, positions))
        yield run

    def further_settings(self, specs: Sequence[GraphSpec]) -> Sequence[Mapping[str, Any]]:
        """See DeviceFamily: guidance, where there is a graph for it."""
        return ({"guidance": 2.0},) if any(spec.name == GUIDED for spec in specs) else ()

    def noise_level(self, inputs: Mapping[str, np.ndarray]) -> float | None:
        """Gives the noise's share of the variance; none where ids are looked up."""
        if "level" not in inputs:
            return None
        return float(np.sin(np.pi / 2 * np.max(inputs["level"])) ** 2)

    def text_rows(self, spec: GraphSpec) -> int:
        """See DeviceFamily: all of a step."""
        return 0 if spec.name == EMBED else spec.rows

    def bound(
        self,
        model: LoadedModel,
        windows: Sequence[np.ndarray],
        *,
        seed: int,
        samples: range,
        block_size: int | None = None,
    ) -> Iterator[np.ndarray]:
        """Yields the cross-entropy of rounding, the mean over training's times: no likelihood.

        A sample noises a window at a time of its own, the first token given; the model estimates it
        in one run without a first estimate.
        """
        self._check_windows(model, windows, block_size)
        angles = LatentSchedule.from_json(model.manifest.noise_schedule).levels()
        drawn = {sample: levels(len(windows), seed, sample) for sample in samples}
        for number, window in enumerate(windows):
            nats = np.zeros((len(samples), len(window)))
            clean = _embedded(model, window)
            for row, sample in enumerate(samples):
                time = 1 + int(drawn[sample][number] * (len(angles) - 1))
                level = angles[min(time, len(angles) - 1)]
                noise = gaussians(seed, sample, np.arange(len(window)), number, clean.shape[1])
                nats[row, 1:], _ = _rounded(model, window, clean, noise, level)
            yield nats

    def by_noise(
        self, model: LoadedModel, windows: Sequence[np.ndarray], *, seed: int
    ) -> Mapping[str, Mapping[str, float]]:
        """Gives nats of rounding per token, and the estimate's squared error per number."""
        found = {level: np.zeros(3) for level in NOISE_LEVELS}
        for number, window in enumerate(windows):
            clean = _embedded(model, window)
            noise = gaussians(seed, 0, np.arange(len(window)), number, clean.shape[1])
            for level, sums in found.items():
                nats, errors = _rounded(model, window, clean, noise, level)
                sums += nats.sum(), errors.sum(), len(nats)
        return {
            f"{level}": {"rounding nats": sums[0] / sums[2], "latent error": sums[1] / sums[2]}
            for level, sums in found.items()
        }


def _embedded(model: LoadedModel, window: np.ndarray) -> np.ndarray:
    """Gives the latents (L, width) of a window that is a canvas."""
    engine = model.engines.engine(by_rows(model.specs, EMBED)[len(window)][0])
    (name,) = engine.inputs
    model.ops.assign(engine.inputs[name], window)
    engine.run()
    output = engine.outputs[engine.spec.tensor("embedded").name]
    return np.array(model.ops.to_host(output)[0])


def _rounded(
    model: LoadedModel, window: np.ndarray, clean: np.ndarray, noise: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Noises a window, its first token given, and estimates it once.

    Returns:
        Of every other token, (L - 1,) each: nats of rounding to it, and mean squared error of its
        latent.
    """
    ops, engine = model.ops, model.engines.engine(by_rows(model.specs, GRAPH)[len(window)][0])
    known = np.arange(len(window)) == 0
    angle = np.pi / 2 * level
    noisy = np.cos(angle) * clean + np.sin(angle) * noise
    values = {
        "known": known.astype(np.float32),
        "canvas": np.where(known[:, None], clean, noisy).astype(np.float32),
        "level": np.array([level], np.float32),
        "before": np.zeros_like(clean),
    }
    for tensor in engine.spec.inputs:
        ops.assign(engine.inputs[tensor.name], values[tensor.role])
    engine.run()
    logits, found = (
        ops.to_host(engine.outputs[engine.spec.tensor(role).name])[0, 1:]
        for role in ("logits", "clean")
    )
    nats = negative_log_likelihood(logits, window[1:], banned_ids(model.manifest))
    return nats, np.square(found - clean[1:]).mean(axis=1)
