"""Bundles of untrained models, unpacked: what a graph costs does not depend on its weights.

Traced by the exporter's own code; checked for nothing and not packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..export.pack import make_draft
from ..export.settings import ExportSettings
from ..export.source import Traceable
from ..runtime.bundle.archive import describe
from ..runtime.bundle.bundle import Bundle
from ..runtime.bundle.manifest_json import manifest_from_json, manifest_to_json
from ..train.families import FAMILIES

MANIFEST_NAME, TOKENIZER_NAME = "manifest.json", "tokenizer.json"


def untrained_bundle(
    folder: Path,
    size: str,
    *,
    vocab_size: int,
    positions: int,
    blocks: Sequence[int],
    contexts: Sequence[int],
    target: str = "host",
    precision: str = "fp32",
    family: str = "mdlm",
) -> Bundle:
    """Traces an untrained model of a preset into a folder; returns it as an opened bundle.

    Args:
        folder: Existing and empty.
        size: A preset: tiny, small, medium, large.
        vocab_size: Tokens.
        positions: That the model is made for.
        blocks: Block sizes of the bundle; the whole canvas is added.
        contexts: Context buckets.
        target: As `dlm-export` takes it.
        precision: As `dlm-export` takes it.
        family: mdlm or ar.
    """
    torch.manual_seed(0)
    maker = FAMILIES[family]
    options = {"size": size, "vocab_size": vocab_size, "context": positions, "eos_token_id": 0}
    if family == "mdlm":
        sizes = ",".join([*map(str, blocks), "full"])
        options |= {"mask_token_id": 1, "block_sizes": sizes}
    config = maker.make_config(options)
    model = maker.make_model(config["model"]).eval()
    manifest = maker.manifest(config, model, target=target, precision=precision)
    source = Traceable(
        graphs=tuple(maker.graphs(model, config)), manifest=manifest, tokenizer_json="{}"
    )
    settings = ExportSettings(
        target=target, precision=precision, blocks=tuple(blocks), contexts=tuple(contexts)
    )
    draft = make_draft(source, settings, folder, lambda line: None)
    members = dict(draft.members)
    # A manifest without a tokenizer is refused; nothing here reads text.
    (folder / TOKENIZER_NAME).write_text(source.tokenizer_json, "utf-8")
    members[TOKENIZER_NAME] = folder / TOKENIZER_NAME
    described = {name: describe(content) for name, content in members.items()}
    whole = replace(draft.bundle.manifest, members=described)
    (folder / MANIFEST_NAME).write_bytes(manifest_to_json(whole))
    return open_folder(folder)


def open_folder(folder: Path) -> Bundle:
    """Opens what `untrained_bundle` wrote."""
    manifest = manifest_from_json((folder / MANIFEST_NAME).read_bytes())
    return Bundle(path=folder, sha256="", manifest=manifest, folder=folder)
