"""The family `mdlm` on the device: masked diffusion, whole canvas (MDLM) or by blocks (BD3-LM).

The update rule is in `rule`, the decoding rules in `rules`, the bound in `bound`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ...bundle.manifest import GraphSpec, Manifest
from ...decoding import DecodingRule
from ...errors import ConfigError
from ..base import Buckets, DeviceFamily, LoadedModel, Request, UpdateRule, WindowSize
from ..window import (
    bucket_of_text,
    capacity,
    check_request,
    choose_block,
    default_block,
)
from .bound import masked_bound
from .rule import MaskedRule, double_buckets, text_blocks
from .rules import MaskedDecoding


class MaskedFamily(DeviceFamily):
    """What the table of families holds for `mdlm`."""

    name = "mdlm"
    exact = False

    def start(self, model: LoadedModel, request: Request) -> UpdateRule:
        manifest = model.manifest
        check_manifest(manifest)
        check_request(manifest, request)
        settings = model.settings(request.settings)
        assert isinstance(settings, MaskedDecoding)
        check_shift(manifest, request, settings)
        return MaskedRule(model, request, settings)

    def blocks(self, manifest: Manifest, specs: Sequence[GraphSpec]) -> Mapping[int, Buckets]:
        del manifest
        return text_blocks(specs)

    def positions(
        self, manifest: Manifest, specs: Sequence[GraphSpec], settings: DecodingRule
    ) -> int:
        assert isinstance(settings, MaskedDecoding)
        shapes = text_blocks(specs)
        block = choose_block(shapes, settings.block_size, manifest.block_sizes)
        return capacity(shapes[block], block, manifest.max_position)

    def runs(
        self,
        manifest: Manifest,
        specs: Sequence[GraphSpec],
        *,
        block: int | None,
        positions: int,
        tokens_per_run: float,
    ) -> Iterator[tuple[GraphSpec, float]]:
        assert block is not None
        buckets = text_blocks(specs)[block]
        # Rows that speak for the next position make a run of its own of storing a block.
        doubles = () if manifest.logit_shift else double_buckets(specs, block)
        for start in range(0, positions, block):
            spec, slid = bucket_of_text(buckets, start)
            first, _ = bucket_of_text(doubles or buckets, start)
            yield first, 1.0
            yield spec, max(1.0, block / tokens_per_run) - (0 if manifest.logit_shift else 1)
            if slid:  # half of the window is read again, for the other half of the blocks
                yield spec, 1.0

    def text_rows(self, spec: GraphSpec) -> int:
        """See DeviceFamily: those of the block."""
        return spec.block or spec.rows

    def windows(
        self, manifest: Manifest, specs: Sequence[GraphSpec], block_size: int | None
    ) -> WindowSize:
        shapes = text_blocks(specs)
        block = choose_block(shapes, block_size or default_block(manifest), manifest.block_sizes)
        room = shapes[block][-1].context // block * block + block
        return WindowSize(block, min(manifest.max_position, room))

    def bound(
        self,
        model: LoadedModel,
        windows: Sequence[np.ndarray],
        *,
        seed: int,
        samples: range,
        block_size: int | None = None,
    ) -> Iterator[np.ndarray]:
        check_manifest(model.manifest)
        size = self.windows(model.manifest, model.specs, block_size)
        buckets = text_blocks(model.specs)[size.block]
        return masked_bound(model, windows, seed=seed, samples=samples, buckets=buckets)


def check_shift(manifest: Manifest, request: Request, settings: MaskedDecoding) -> None:
    """Raises ConfigError for what depends on which position a row speaks for."""
    if settings.merge and not manifest.logit_shift:
        raise ConfigError(
            "merge is about models whose rows speak for the next position, and this one's speak "
            "for their own: leave it out, its runs are merged wherever that changes nothing"
        )
    template = request.template_ids
    if manifest.logit_shift and template and template[0] == manifest.mask_token_id:
        raise ConfigError(
            "the text to fill begins with a gap, and no row of this model speaks for the first "
            "position: put a word in front"
        )


def check_manifest(manifest: Manifest) -> None:
    """Raises ConfigError for models that this family cannot decode."""
    if manifest.mask_token_id is None:
        raise ConfigError("the bundle names no mask token, which mdlm needs; export it again")
