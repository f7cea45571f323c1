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

from collections.abc import Iterator, Sequence

import numpy as np

from ...bundle.manifest import GraphSpec, Manifest
from ...decoding import DecodingSettings
from ...engines.base import EngineSet
from ...errors import ConfigError
from ...ops.base import Ops
from ..base import Request, UpdateRule, check_rule, resolve_settings
from ..causal import CausalRule, causal_likelihood, check_request
from ..window import choose_block, contexts_by_block
from .layout import draft_block
from .rule import GRAPH, DraftRule


class DraftFamily:
    """What the table of families holds for `tidar`."""

    name = "tidar"
    default_rule = "draft_verify"
    rules: tuple[str, ...] = ("draft_verify", "next_token")
    exact = True

    def start(
        self, manifest: Manifest, engines: EngineSet, ops: Ops, request: Request
    ) -> UpdateRule:
        """See DeviceFamily."""
        check_request(manifest, request)
        check_manifest(manifest)
        settings = check_rule(self, request.settings or resolve_settings(manifest, self, {}))
        if settings.rule == "next_token":
            if settings.block_size is not None:
                raise ConfigError("block_size has no effect on rule next_token; leave it out")
            return CausalRule(manifest, engines, ops, request, settings, graph=GRAPH)
        shapes = contexts_by_draft(engines.specs)
        block = choose_block(shapes, settings.block_size, manifest.block_sizes)
        return DraftRule(
            manifest, engines, ops, request, settings, block=block, contexts=shapes[block]
        )

    def bound(
        self,
        manifest: Manifest,
        engines: EngineSet,
        ops: Ops,
        windows: Sequence[np.ndarray],
        *,
        seed: int,
        samples: range,
        block_size: int | None = None,
    ) -> Iterator[np.ndarray]:
        """See DeviceFamily; seed and block_size change nothing, the likelihood is exact."""
        check_manifest(manifest)
        return causal_likelihood(manifest, engines, ops, windows, samples=samples, graph=GRAPH)

    def positions(
        self, manifest: Manifest, specs: Sequence[GraphSpec], settings: DecodingSettings
    ) -> int:
        """See Roomed: every token but the newest has a row in the cache."""
        del settings
        contexts = contexts_by_block(specs, GRAPH).values()
        return min(manifest.max_position, min(sizes[-1] for sizes in contexts))

    def blocks(self, manifest: Manifest) -> dict[int, tuple[int, ...]]:
        """See Shaped: what can be drafted together."""
        return contexts_by_draft(manifest.graphs)


def contexts_by_draft(specs: Sequence[GraphSpec]) -> dict[int, tuple[int, ...]]:
    """Gives the context sizes, ascending, per draft block on offer, ascending.

    Raises:
        ConfigError: No graph drafts.
    """
    found = {
        block: contexts
        for rows, contexts in contexts_by_block(specs, GRAPH).items()
        if (block := draft_block(rows)) is not None
    }
    if not found:
        raise ConfigError(
            "no graph of the bundle has the rows of a draft block, B (1 + B); decode it with "
            "--rule next_token, or export it with --block"
        )
    return found


def check_manifest(manifest: Manifest) -> None:
    """Raises ConfigError for models that this family cannot decode."""
    if manifest.mask_token_id is None:
        raise ConfigError("the bundle names no mask token, which tidar needs; export it again")
    if manifest.logit_shift != 1:
        raise ConfigError(
            f"tidar's causal rows predict the next token, the bundle has logit_shift "
            f"{manifest.logit_shift}; export it again"
        )
