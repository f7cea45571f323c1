"""The family `tidar` on the device: drafts by diffusion, verified causally, in one run.

| rule | does |
|---|---|
| `draft_verify` | several tokens per run (`rule.py`); at beta 1 the texts of `next_token` |
| `next_token` | one token per run on the same engine: what speed-ups are measured against |

The likelihood is exact: a plain causal pass over known text. Graphs, by their roles:

| graph | inputs | outputs |
|---|---|---|
| `step` | canvas, start, offsets, visible, kv | kv_new, and logits; or hidden, where there is |
| `head` | hidden_rows | logits |

`step` is offered at 1 row and, per draft block B, at B (1 + B) rows; the setting `block_size` is B.
Row i's logits predict token i + 1 behind known ids and drafts, token i in place of a mask.

Source: TiDAR (arXiv 2511.08923).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ...bundle.manifest import GraphSpec, Manifest
from ...decoding import DecodingRule
from ...errors import ConfigError
from ..base import Buckets, DeviceFamily, LoadedModel, Request, UpdateRule, WindowSize
from ..causal import (
    CausalRule,
    causal_likelihood,
    causal_runs,
    causal_windows,
    check_causal_request,
)
from ..heads import Heads
from ..next_token import NextToken
from ..window import bucket_of_text, by_block, by_rows, choose_block
from .rule import DRAFT, GRAPH, DraftRule
from .rules import DraftVerify


class DraftFamily(DeviceFamily):
    """What the table of families holds for `tidar`."""

    name = "tidar"
    exact = True

    def start(self, model: LoadedModel, request: Request) -> UpdateRule:
        manifest = model.manifest
        check_causal_request(manifest, request)
        check_manifest(manifest)
        settings = model.settings(request.settings)
        if isinstance(settings, NextToken):
            return CausalRule(model, request, settings, graph=GRAPH)
        assert isinstance(settings, DraftVerify)
        shapes = by_draft(model.specs)
        block = choose_block(shapes, settings.block_size, manifest.block_sizes)
        return DraftRule(model, request, settings, block=block, buckets=shapes[block])

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
        check_manifest(model.manifest)
        return causal_likelihood(model, windows, samples=samples, graph=GRAPH)

    def positions(
        self, manifest: Manifest, specs: Sequence[GraphSpec], settings: DecodingRule
    ) -> int:
        """See DeviceFamily: every token but the newest has a row in the cache."""
        del settings
        longest = min(buckets[-1].context for buckets in by_rows(specs, GRAPH).values())
        return min(manifest.max_position, longest)

    def blocks(self, manifest: Manifest, specs: Sequence[GraphSpec]) -> Mapping[int, Buckets]:
        """See DeviceFamily: what can be drafted together."""
        del manifest
        return by_draft(specs)

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
        if block is None:
            yield from causal_runs(specs, positions, tokens_per_run, GRAPH)
            return
        buckets, heads = by_draft(specs)[block], Heads(specs)
        for start in range(positions):
            spec, slid = bucket_of_text(buckets, start + 1)
            yield spec, 1 / tokens_per_run
            if heads:  # one to verify, one to draft again
                yield heads.run_of(1), 1 / tokens_per_run
                yield heads.run_of(block), 1 / tokens_per_run
            if slid:
                yield spec, 1 / spec.rows

    def text_rows(self, spec: GraphSpec) -> int:
        """See DeviceFamily: those of the drafts and of one proposal, or the newest token's."""
        if spec.name == GRAPH:
            return 1 if spec.block is None else 2 * spec.block
        return spec.rows

    def windows(
        self, manifest: Manifest, specs: Sequence[GraphSpec], block_size: int | None
    ) -> WindowSize:
        return causal_windows(manifest, specs, block_size, graph=GRAPH)


def by_draft(specs: Sequence[GraphSpec]) -> dict[int, Buckets]:
    """Gives the shapes that draft and verify, per number of tokens drafted, ascending.

    Raises:
        ConfigError: No graph drafts.
    """
    try:
        return by_block(specs, GRAPH, (DRAFT,))
    except ConfigError as error:
        raise ConfigError(
            "no graph of the bundle drafts; decode it with --rule next_token, or export it with "
            "--block"
        ) from error


def check_manifest(manifest: Manifest) -> None:
    """Raises ConfigError for models that this family cannot decode."""
    if manifest.mask_token_id is None:
        raise ConfigError("the bundle names no mask token, which tidar needs; export it again")
    if manifest.logit_shift != 1:
        raise ConfigError(
            f"tidar's causal rows predict the next token, the bundle has logit_shift "
            f"{manifest.logit_shift}; export it again"
        )
