"""The family `dimba` on the device: diffusion on latents by a bidirectional state-space model.

The update rule is in `rule`, the decoding rules in `rules`, the formulas of a step in
`noise.latent`. There is no likelihood: `bound` gives the cross-entropy of rounding, see there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ...bundle.manifest import GraphSpec, Manifest
from ...errors import ConfigError
from ...noise.latent import LatentSchedule
from ...noise.philox import gaussians
from ..base import LoadedModel, Request, UpdateRule
from ..likelihood import levels, negative_log_likelihood
from ..whole_canvas import WholeCanvasFamily, canvases
from ..window import banned_ids, by_rows, check_request
from .rule import EMBED, GRAPH, LatentRule
from .rules import LatentDecoding


class LatentFamily(WholeCanvasFamily):
    """What the table of families holds for `dimba`."""

    name = "dimba"
    graph = GRAPH

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
        manifest, ops, engines = model.manifest, model.ops, model.engines
        angle = LatentSchedule.from_json(manifest.noise_schedule).levels()
        drawn = {sample: levels(len(windows), seed, sample) for sample in samples}
        banned = banned_ids(manifest)
        for number, window in enumerate(windows):
            embed = engines.engine(by_rows(model.specs, EMBED)[len(window)][0])
            engine = engines.engine(by_rows(model.specs, GRAPH)[len(window)][0])
            spec = engine.spec
            (name,) = embed.inputs
            ops.assign(embed.inputs[name], window)
            embed.run()
            clean = np.array(ops.to_host(embed.outputs[embed.spec.tensor("embedded").name])[0])
            known = np.arange(len(window)) == 0
            values = {"known": known.astype(np.float32)}
            if any(tensor.role == "before" for tensor in spec.inputs):
                values["before"] = np.zeros_like(clean)
            nats = np.zeros((len(samples), len(window)))
            for row, sample in enumerate(samples):
                time = 1 + int(drawn[sample][number] * (len(angle) - 1))
                level = angle[min(time, len(angle) - 1)]
                noise = gaussians(seed, sample, np.arange(len(window)), number, clean.shape[1])
                noisy = np.cos(np.pi / 2 * level) * clean + np.sin(np.pi / 2 * level) * noise
                values["canvas"] = np.where(known[:, None], clean, noisy).astype(np.float32)
                values["level"] = np.array([level], np.float32)
                for role, value in values.items():
                    ops.assign(engine.inputs[spec.tensor(role).name], value)
                engine.run()
                logits = ops.to_host(engine.outputs[spec.tensor("logits").name])[0, 1:]
                nats[row, 1:] = negative_log_likelihood(logits, window[1:], banned)
            yield nats
