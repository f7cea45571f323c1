"""A bundle of each family, exported from an untrained checkpoint; tokens are bytes."""

from pathlib import Path

from dlm_edge.export.pack import export_checkpoint
from dlm_edge.export.settings import ExportSettings
from tiny_checkpoint import make_checkpoint

FAMILIES = {
    "mdlm": ({}, (4,), (8, 16)),
    "ar": ({}, (), (8, 16)),
    "sedd": ({"mask_token_id": 1}, (), ()),
    "tidar": ({"mask_token_id": 1, "block_sizes": "2,4", "context": 32}, (2, 4), (16, 32)),
}
"""By name: options of the checkpoint, block sizes and contexts of the bundle."""


def make_family_bundle(folder: Path, family: str, *, batch: int = 1) -> Path:
    """Writes the checkpoint FOLDER/FAMILY and the bundle FOLDER/FAMILY.dlm; returns the bundle."""
    options, blocks, contexts = FAMILIES[family]
    make_checkpoint(folder / family, family, **options)
    settings = ExportSettings(blocks=blocks, contexts=contexts, batch=batch)
    path = folder / f"{family}.dlm"
    export_checkpoint(folder / family, path, settings)
    return path
