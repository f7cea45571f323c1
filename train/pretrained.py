"""Checkpoints as people know them elsewhere: load one by path or hub name and write text with it.

    from dlm_edge.train.pretrained import load_pretrained
    pipeline = load_pretrained("owner/name")
    print(pipeline.generate("Once upon a time").result().text)

The same `Pipeline` as a bundle's, over PyTorch, without export: for looking at a model on the
desktop. For speed, and for a board, export a bundle. Knows no family.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..runtime.bundle import Bundle
from ..runtime.pipeline import Pipeline
from ..runtime.tokenizer import Tokenizer
from .checkpoint import read_checkpoint, write_checkpoint
from .evaluate import open_checkpoint


def load_pretrained(where: str | Path) -> Pipeline:
    """Opens a checkpoint folder, or `owner/name` of the Hugging Face hub.

    Raises:
        CheckpointError: There is none, it is damaged, or of a family unknown to this version.
    """
    checkpoint = read_checkpoint(where)
    manifest, engines = open_checkpoint(checkpoint)
    folder = checkpoint.path
    bundle = Bundle(path=folder, sha256="", manifest=manifest, folder=folder)
    return Pipeline(bundle, engines, Tokenizer(checkpoint.tokenizer_json))


def save_pretrained(
    model: nn.Module, config: Mapping[str, Any], tokenizer_json: str, folder: str | Path
) -> None:
    """Writes config.json, model.safetensors and tokenizer.json, whole or not at all each.

    Args:
        model: What the family's `make_model` gave.
        config: What its `make_config` gave.
        tokenizer_json: Text of a tokenizer.json.
        folder: Made if missing; `dlm-export`, `--init` and `load_pretrained` read it, and so does
            the hub.

    Raises:
        CheckpointError: A weight is not finite, or the folder cannot be written.
    """
    write_checkpoint(Path(folder), config, model.state_dict(), tokenizer_json)
