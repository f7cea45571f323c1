"""What was understood of a checkpoint, and how well it then reads a text: `--report-import`.

A file that somebody who has the weights can send to somebody who has not. A model whose names, ids
or attention were misread is no better on a text than a guess.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...runtime.errors import ConfigError
from ...runtime.text.tokenizer import Tokenizer
from ...train.data.batches import Batch
from ...train.families.base import Family

MAX_POSITIONS = 512
"""Of the text that is read, unless one canvas is longer: logits of a large vocabulary take 0.6 MB
a position."""


def import_report(
    family: Family,
    model: nn.Module,
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
    tokenizer: Tokenizer,
    ids: np.ndarray,
) -> dict[str, Any]:
    """Describes an opened checkpoint.

    Args:
        config: The whole config.json, as the family made it.
        ids: Real text (L,) int32 to read.
    """
    special = {name: config.get(f"{name}_token_id") for name in ("eos", "mask", "pad")}
    return {
        "source": dict(provenance.get("source") or {}),
        "checkpoint_sha256": provenance["checkpoint_sha256"],
        "versions": dict(provenance["versions"]),
        "family": config["family"],
        "model": dict(config["model"]),
        "num_parameters": sum(item.numel() for item in model.parameters()),
        "vocab_size": config["vocab_size"],
        "tokenizer_ids": tokenizer.vocab_size,
        "ids_without_text": len(tokenizer.missing_ids(config["vocab_size"])),
        "special_ids": special,
        "start_ids": config.get("start_ids"),
        "end_ids": list(config.get("end_ids") or ()),
        "block_sizes": list(config["block_sizes"]),
        "reading": _reading(family, model, config, ids),
    }


@torch.no_grad()
def _reading(
    family: Family, model: nn.Module, config: Mapping[str, Any], ids: np.ndarray
) -> dict[str, Any]:
    """The bound of a text in nats per token, by block size, and what a guess would have."""
    largest = max(config["block_sizes"])
    length = max(min(MAX_POSITIONS, len(ids)) // largest, 1) * largest
    if length > len(ids):
        return {"skipped": f"the text has {len(ids)} tokens, a canvas {length}"}
    batch = Batch(ids=torch.from_numpy(ids[None, :length].astype(np.int64)))
    nats = family.eval_loss(model, batch, config, seed=0)
    return {
        "tokens": length - 1,
        "nats_per_token": {name: float(sums[0]) / (length - 1) for name, sums in nats.items()},
        "nats_of_a_guess": math.log(config["vocab_size"]),
    }


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Writes a report as JSON; raises ConfigError if the file cannot be written."""
    try:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--report-import {path} cannot be written ({error})") from error
