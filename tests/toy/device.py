"""The toy family on the device: `encode` once, then `denoise` step by step; one canvas a text.

| run | reads | gives |
|---|---|---|
| encode | source: the last tokens of the prompt; without any in the second half | encoded |
| denoise | latents, level, memory: what `encode` gave, written once | clean latents, logits |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from dlm_edge.runtime.bundle.manifest import GraphSpec, Manifest
from dlm_edge.runtime.engines.base import Engine
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.runtime.families.base import (
    Buckets,
    DeviceFamily,
    LoadedModel,
    Request,
    Span,
    UpdateRule,
    WindowSize,
)
from dlm_edge.runtime.families.text_rule import TextRule
from dlm_edge.runtime.families.window import Text, by_rows
from dlm_edge.runtime.noise.philox import DrawKind, uniforms
from dlm_edge.runtime.ops.rows import ROWS

from .latent import LATENT
from .latent.contract import ddim_table
from .rules import ToyDecoding

ENCODE, DENOISE = "encode", "denoise"


def gaussians(seed: int, sample: int, rows: int, dim: int, number: int = 0) -> np.ndarray:
    """Draws (rows, dim) float32 by Box-Muller from the counters (row, component)."""
    place = np.arange(rows)[:, None] * dim + np.arange(dim)
    first, second = (
        uniforms(seed, sample, place, 2 * number + half, DrawKind.NOISE) for half in (0, 1)
    )
    radius = np.sqrt(-2.0 * np.log1p(-first))
    return (radius * np.cos(2.0 * np.pi * second)).astype(np.float32)


def shapes_of(specs: Sequence[GraphSpec]) -> tuple[GraphSpec, GraphSpec]:
    """Gives the shapes of `encode` and `denoise`."""
    (encode,) = (spec for spec in specs if spec.name == ENCODE)
    (denoise,) = (spec for spec in specs if spec.name == DENOISE)
    return encode, denoise


def sources(manifest: Manifest, spec: GraphSpec, known: np.ndarray) -> np.ndarray:
    """Gives the source (2, S) int32: the last known ids behind EOS, and EOS alone."""
    ids = np.full((2, spec.dims["source"]), manifest.eos_token_id, np.int32)
    tail = known[-spec.dims["source"] :]
    ids[0, ids.shape[1] - len(tail) :] = tail
    return ids


class ToyRule(TextRule):
    """One text on one canvas."""

    def __init__(self, model: LoadedModel, request: Request, settings: ToyDecoding) -> None:
        self._ops, self._manifest = model.ops, model.manifest
        self._encode, self._denoise = shapes_of(model.specs)
        rows, dim = self._denoise.tensor("canvas").shape[1:]
        if not 0 <= request.max_tokens <= rows:
            raise ConfigError(f"max_tokens {request.max_tokens}: the canvas has {rows} positions")
        self._num_given = len(request.prompt_ids)
        self._text = Text(request.prompt_ids, self._num_given + request.max_tokens)
        self._latent, self._rows = model.ops.bind(LATENT), model.ops.bind(ROWS)
        self._guidance = settings.guidance
        self._canvas = self._latent.canvas(
            ddim_table(settings.steps), rows, dim, model.manifest.vocab_size
        )
        noise = gaussians(request.seed, request.sample_index, rows, dim)
        self._latent.begin(self._canvas, noise)
        self._memory = None
        self._fed = False
        self._done = request.max_tokens == 0

    @property
    def phase(self) -> str:
        return self.next_run().purpose

    def next_run(self) -> GraphSpec:
        return self._encode if self._memory is None else self._denoise

    def feed(self, engine: Engine) -> None:
        if self._memory is None:
            if engine.spec.tensor("source").lifetime == "request":
                return  # a condition of the request
            source = sources(self._manifest, engine.spec, self._text.ids)
            self._ops.assign(engine.inputs["source"], source)
            return
        if not self._fed:
            self._ops.assign(engine.inputs["memory"], self._memory)
            self._fed = True
        self._ops.assign(engine.inputs["latents"], self._canvas.latents)
        self._ops.assign(engine.inputs["level"], self._canvas.level)

    def update(self, engine: Engine) -> None:
        if self._memory is None:
            self._memory = engine.outputs["encoded"]
            return
        clean, logits = (
            self._rows.guide(engine.outputs[name], self._guidance) for name in ("clean", "logits")
        )
        self._latent.step(clean, logits, self._canvas)

    def read(self) -> Sequence[Span]:
        if self._canvas.num_steps < len(self._canvas.table):
            return []
        ids = self._latent.ids(self._canvas)[: self._text.limit - self._num_given]
        ends = np.flatnonzero(ids == self._manifest.eos_token_id)
        self._ended, self._done = len(ends) > 0, True
        new = self._text.extend(self._num_given, ids[: ends[0]] if len(ends) else ids)
        return [Span(position=self._num_given, token_ids=new, committed=True)] if new else []


class ToyDevice(DeviceFamily):
    """What the device's table lists."""

    name = "toy"
    exact = False

    def start(self, model: LoadedModel, request: Request) -> UpdateRule:
        settings = model.settings(request.settings)
        assert isinstance(settings, ToyDecoding)
        return ToyRule(model, request, settings)

    def blocks(self, manifest: Manifest, specs: Sequence[GraphSpec]) -> Mapping[int, Buckets]:
        return by_rows(specs, DENOISE)

    def positions(self, manifest: Manifest, specs: Sequence[GraphSpec], settings) -> int:
        return shapes_of(specs)[1].rows + 1

    def runs(
        self,
        manifest: Manifest,
        specs: Sequence[GraphSpec],
        *,
        block: int | None,
        positions: int,
        tokens_per_run: float,
    ) -> Iterator[tuple[GraphSpec, float]]:
        encode, denoise = shapes_of(specs)
        yield encode, 1.0
        yield denoise, max(1.0, denoise.rows / tokens_per_run)

    def noise_level(self, inputs: Mapping[str, np.ndarray]) -> float | None:
        return float(inputs["level"][0]) if "level" in inputs else None

    def text_rows(self, spec: GraphSpec) -> int:
        return spec.rows if spec.name == DENOISE else 0

    def windows(
        self, manifest: Manifest, specs: Sequence[GraphSpec], block_size: int | None
    ) -> WindowSize:
        return WindowSize(shapes_of(specs)[1].rows + 1, shapes_of(specs)[1].rows + 1)

    def bound(
        self,
        model: LoadedModel,
        windows: Sequence[np.ndarray],
        *,
        seed: int,
        samples: range,
        block_size: int | None = None,
    ) -> Iterator[np.ndarray]:
        manifest, engines, ops = model.manifest, model.engines, model.ops
        encode, denoise = (engines.engine(spec) for spec in shapes_of(model.specs))
        rows, dim = denoise.spec.tensor("canvas").shape[1:]
        for number, window in enumerate(windows):
            nats = np.zeros((len(samples), len(window)))
            ops.assign(encode.inputs["source"], sources(manifest, encode.spec, window[:1]))
            encode.run()
            ops.assign(denoise.inputs["memory"], encode.outputs["encoded"])
            ops.assign(denoise.inputs["level"], np.ones(1, np.float32))
            for row, sample in enumerate(samples):
                noise = gaussians(seed, sample, rows, dim, 1 + number)
                ops.assign(denoise.inputs["latents"], np.stack([noise, noise]))
                denoise.run()
                logits = ops.to_host(denoise.outputs["logits"])[0, : len(window) - 1]
                wide = logits.astype(np.float64)
                found = wide[np.arange(len(wide)), window[1:]]
                nats[row, 1:] = np.logaddexp.reduce(wide, axis=1) - found
            yield nats
