"""The device-side seam: what a family must say about decoding, and nothing else.

`generate.py` runs whatever an `UpdateRule` asks for and knows no family. A family is a folder with
its decoding rules, its update rule, its bound and a `DeviceFamily` that joins them; `table.py`
lists them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from ..bundle.manifest import GraphSpec, Manifest, TensorSpec
from ..decoding import DecodingRule, rule_over
from ..engines.base import Engine, EngineSet
from ..errors import ConfigError
from ..ops.core import Ops

Buckets = tuple[GraphSpec, ...]
"""Shapes of one graph that differ in their context alone, ascending."""
HEAD_PHASE = "head"
"""The phase (see `Phased`) of runs that only finish another run's output: no NFE of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A piece of the canvas that an update changed."""

    position: int
    """Absolute position of the first token (0 is the start token)."""
    token_ids: tuple[int, ...]
    """Ids from `position` on; masked positions of a provisional canvas hold the mask id."""
    committed: bool
    """Committed tokens never change again; provisional ones may."""
    fixed: tuple[bool, ...] | None = None
    """For provisional spans: which positions are already unmasked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One text to generate, in token ids."""

    prompt_ids: tuple[int, ...]
    """Ids before the generated text, start token included."""
    max_tokens: int
    """New tokens at most."""
    seed: int
    sample_index: int
    """Which of several samples of one seed: different indices give different texts."""
    template_ids: tuple[int, ...] | None = None
    """Infilling: the whole text, start token included, with the mask id at each position to fill.
    `prompt_ids` and `max_tokens` are not used then."""
    settings: DecodingRule | None = None
    """How it is decoded; None: the manifest's defaults."""
    banned_ids: tuple[int, ...] = ()
    """Ids never to generate, beside mask and padding: those the tokenizer has no text for."""
    end_ids: tuple[int, ...] = ()
    """Ids that end the text beside the manifest's."""
    num_cached: int = 0
    """So many ids of the prompt stand in the KV cache already: the request before gave them as its
    rule's `cached_ids` (see `Resumable`). Less than the prompt has."""
    conditions: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What the text depends on beside the prompt, by the role of the graph's input: each in its
    shape and dtype (see `condition_inputs`). Written once, before the first run."""
    provisional: bool = False
    """Whether to report the canvas after every step too, which costs a copy of it."""


class UpdateRule(Protocol):
    """One request being decoded; its state is its own."""

    @property
    def done(self) -> bool:
        """True when nothing more will change."""
        ...

    def next_run(self) -> GraphSpec:
        """Gives the shape to run next."""
        ...

    @property
    def block_size(self) -> int | None:
        """Positions that are committed as one block; None: the text does not go by blocks."""
        ...

    def feed(self, engine: Engine) -> None:
        """Writes the inputs of the run into the engine's buffers."""
        ...

    def update(self, engine: Engine) -> None:
        """Has primitives apply the run's outputs to the canvas.

        On a device this only enqueues, so that texts which share a run share launches, too.
        """
        ...

    def read(self) -> Sequence[Span]:
        """Waits for what the primitives found, once per update; returns what changed.

        Committed spans follow each other without gaps; a token that ends the text is in none.
        """
        ...

    @property
    def tokens(self) -> np.ndarray:
        """Committed ids without a gap so far, int32, start token and prompt included.

        A token that ends the text is left out.
        """
        ...

    @property
    def num_given(self) -> int:
        """How many of `tokens` the request gave: the generated ones stand behind them."""
        ...

    @property
    def ended(self) -> bool:
        """True when the model ended the text itself, before the limit."""
        ...

    @property
    def approximate(self) -> bool:
        """True when a sliding window dropped a part of the text that the model should have seen."""
        ...


@runtime_checkable
class Phased(Protocol):
    """An update rule that can tell what its runs are for; rules need not, reports gain by it."""

    @property
    def phase(self) -> str:
        """What the next run is for: `prefill` (known text into the cache), `denoise` (or another
        kind of step that makes text), `commit` (a finished block into the cache), `advance`
        (a block into the cache, and the first step of the next) or HEAD_PHASE."""
        ...


@runtime_checkable
class Resumable(Protocol):
    """An update rule whose cache another request can go on from; rules need not, chats gain."""

    @property
    def cached_ids(self) -> np.ndarray:
        """The ids, from the text's start on, whose keys and values the cache holds: int32."""
        ...


class WindowSize(NamedTuple):
    """How a text is cut to be scored."""

    block: int
    """Windows have a multiple of so many positions."""
    longest: int
    """Positions of a window at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A bundle's model, opened: what decodes, scores and measures."""

    manifest: Manifest
    engines: EngineSet
    """Run its graphs."""
    ops: Ops
    """Read and write the engines' buffers."""
    family: DeviceFamily
    rules: tuple[type[DecodingRule], ...]
    """That the family decodes by."""

    @property
    def specs(self) -> tuple[GraphSpec, ...]:
        """The shapes that the engines offer."""
        return self.engines.specs

    def settings(self, asked: DecodingRule | Mapping[str, Any] | None) -> DecodingRule:
        """Gives the decoding rule of a request or a command; see `rule_over`."""
        of = f"a model of family {self.manifest.family}"
        return rule_over(self.manifest.decoding, asked, self.rules, of=of)

    def start(self, request: Request) -> UpdateRule:
        """Starts a request: writes its conditions, and has the family make its first canvas.

        Raises:
            ConfigError: It cannot be served; a condition is missing, unknown, or of another shape
                or dtype.
        """
        self._write_conditions(request.conditions)
        return self.family.start(self, request)

    def _write_conditions(self, given: Mapping[str, np.ndarray]) -> None:
        wanted = condition_inputs(self.specs)
        if given.keys() != wanted.keys():
            raise ConfigError(
                f"the bundle's conditions are {', '.join(sorted(wanted)) or 'none'}, the request "
                f"has {', '.join(sorted(given)) or 'none'}; give exactly the former (conditions=; "
                "--condition)"
            )
        for role, value in given.items():
            inputs = {(tensor.dtype, tensor.shape): (spec, tensor) for spec, tensor in wanted[role]}
            array = np.asarray(value)  # a scalar stays one
            if (array.dtype.name, array.shape) not in inputs:
                takes = " or ".join(f"{dtype} {shape}" for dtype, shape in inputs)
                raise ConfigError(
                    f"condition {role} is {array.dtype.name} {array.shape}, the bundle takes "
                    f"{takes}; convert it"
                )
            # Every shape of every graph that reads it shares this array.
            spec, tensor = inputs[array.dtype.name, array.shape]
            self.ops.assign(self.engines.engine(spec).inputs[tensor.name], array)

    def positions(self, settings: DecodingRule) -> int:
        """Gives how many positions a text may have before its window slides; see DeviceFamily."""
        return self.family.positions(self.manifest, self.specs, settings)


def condition_inputs(
    specs: Sequence[GraphSpec],
) -> dict[str, list[tuple[GraphSpec, TensorSpec]]]:
    """Gives the inputs that a request must bring, by role: of lifetime `request`, made by no graph.

    A cache is made by the runs that append to it.
    """
    made = {tensor.cache or tensor.role for spec in specs for tensor in spec.outputs}
    found: dict[str, list[tuple[GraphSpec, TensorSpec]]] = {}
    for spec in specs:
        for tensor in spec.inputs:
            if tensor.lifetime == "request" and tensor.role not in made:
                found.setdefault(tensor.role, []).append((spec, tensor))
    return found


class DeviceFamily(Protocol):
    """What `table.py` lists: how to start a request, and how good the model is."""

    name: str
    exact: bool
    """True when the bound is the exact likelihood, so that one sample is enough."""
    figure: str = "perplexity"
    """What `bound` measures, in words; other than this where the family has no likelihood."""

    def start(self, model: LoadedModel, request: Request) -> UpdateRule:
        """Makes the first canvas of a request; raises ConfigError if it cannot be served."""
        ...

    def blocks(self, manifest: Manifest, specs: Sequence[GraphSpec]) -> Mapping[int, Buckets]:
        """Gives the shapes that decode a text, per value of the setting `block_size`, ascending.

        Empty: the family has no such choice.
        """
        ...

    def positions(
        self, manifest: Manifest, specs: Sequence[GraphSpec], settings: DecodingRule
    ) -> int:
        """Gives how many positions a text may have before its window slides.

        Args:
            manifest: The bundle's.
            specs: The shapes that the engine offers.
            settings: Of the request: a text decodes at one block size.

        Raises:
            ConfigError: No graph has the block size of the settings.
        """
        ...

    def runs(
        self,
        manifest: Manifest,
        specs: Sequence[GraphSpec],
        *,
        block: int | None,
        positions: int,
        tokens_per_run: float,
    ) -> Iterator[tuple[GraphSpec, float]]:
        """Yields the graph runs that a text takes, and how many there are of each.

        Args:
            manifest: The bundle's.
            specs: Shapes to choose from.
            block: Value of the setting `block_size`; None where a text does not go by blocks.
            positions: Of the text.
            tokens_per_run: Tokens that a run makes; runs of a head are not counted.
        """
        ...

    def noise_level(self, inputs: Mapping[str, np.ndarray]) -> float | None:
        """Gives the chance that noise has replaced a token of a run's canvas.

        Args:
            inputs: Of the run, by role.

        Returns:
            From 0 to 1; None where masks show all noise, which is what families have by default.
        """
        del inputs
        return None

    def further_settings(self, specs: Sequence[GraphSpec]) -> Sequence[Mapping[str, Any]]:
        """Gives settings that run graphs which the default ones leave out, for calibration."""
        del specs
        return ()

    def text_rows(self, spec: GraphSpec) -> int:
        """Gives how many rows of a run are sampled."""
        ...

    def windows(
        self, manifest: Manifest, specs: Sequence[GraphSpec], block_size: int | None
    ) -> WindowSize:
        """Says how a text is cut for `bound`; ConfigError for a block size that is not on offer."""
        ...

    def by_noise(
        self, model: LoadedModel, windows: Sequence[np.ndarray], *, seed: int
    ) -> Mapping[str, Mapping[str, float]]:
        """Gives further figures per noise level, for families without a likelihood; else none."""
        del model, windows, seed
        return {}

    def bound(
        self,
        model: LoadedModel,
        windows: Sequence[np.ndarray],
        *,
        seed: int,
        samples: range,
        block_size: int | None = None,
    ) -> Iterator[np.ndarray]:
        """Yields, per window, its per-position negative log-likelihood bound in nats.

        Args:
            model: Whose bound it is.
            windows: Each (L,) int32; L may differ. Position 0 is given and scores 0.
            seed: With window number and sample number it determines every draw.
            samples: Numbers of the Monte-Carlo draws; 2k and 2k + 1 are an antithetic pair. Draws
                do not depend on which other samples are asked for, but on the list of windows.
            block_size: Positions denoised together; None: what decoding would take. Families that
                have no choice refuse another.

        Yields:
            (len(samples), L) float64. Families whose likelihood is exact yield equal rows.
        """
        ...
