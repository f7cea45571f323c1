"""The bound of a checkpoint on a text: `dlm-train --evaluate`.

The measuring itself is the runtime's, over a TorchEngineSet, so that a checkpoint and its bundle
see identical masks and agree to rounding. Knows no family.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn

from ..runtime.errors import CheckpointError, ConfigError
from ..runtime.families.base import LoadedModel
from ..runtime.families.table import load_model
from ..runtime.measure.evaluate import Progress, evaluate_documents
from ..runtime.text.documents import by_document
from ..runtime.text.tokenizer import Tokenizer
from .checkpoints.checkpoint import Checkpoint, load_weights
from .checkpoints.convert import open_any
from .data.sources import find_source, pieces
from .families import FAMILIES
from .families.base import Family
from .torch_engine import TorchEngineSet


def open_model(checkpoint: Checkpoint) -> tuple[Family, nn.Module]:
    """Makes a checkpoint's family and model, with its weights, in evaluation mode.

    Raises:
        CheckpointError: Its family is unknown, or the weights do not fit the model.
    """
    config = checkpoint.config
    family = FAMILIES.get(config["family"])
    if family is None:
        raise CheckpointError(
            f"{checkpoint.path}: family {config['family']!r} is unknown to this version, which "
            f"has {', '.join(FAMILIES)}"
        )
    model = family.make_model(config["model"]).eval()
    load_weights(model, checkpoint)
    return family, model


def open_checkpoint(checkpoint: Checkpoint, threads: int | None = None) -> LoadedModel:
    """Makes a checkpoint decodable without export: its manifest, and engines over PyTorch.

    Args:
        threads: PyTorch's in each run; None: as many as there are idle cores.
    """
    config = checkpoint.config
    family, model = open_model(checkpoint)
    graphs = family.graphs(model, config)
    engines = TorchEngineSet(graphs, threads)
    manifest = family.manifest(
        config,
        model,
        target="host",
        precision="fp32",
        graphs=engines.specs,
        provenance={"training": config.get("training") or {}},
    )
    return load_model(manifest, engines)


def evaluate_checkpoint(
    path: Path,
    data: str | Path,
    *,
    text_field: str = "text",
    seed: int = 0,
    limit: int | None = None,
    block_size: int | None = None,
    relative_half_width: float = 0.01,
    max_samples: int = 64,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measures a checkpoint's bound on a text.

    Args:
        text_field: Field or column that holds the text in records.
        seed: Determines the masks; equal seeds give those of `dlm-eval`.
        block_size: Positions denoised together; None: the largest below the canvas.
        relative_half_width: Draw masks until perplexity is known this well (95 %) …
        max_samples: … or so many masks of each text are drawn.

    Returns:
        `perplexity, perplexity_low, perplexity_high, nats_per_token, bits_per_char, num_tokens,
        num_samples` and what they were measured with, as `dlm-eval --json` prints them.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        DataError: The data cannot be read, or is shorter than one block.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit must be at least 1 document, not {limit}")
    checkpoint = open_any(path)
    model = open_checkpoint(checkpoint, threads)
    figures = evaluate_documents(
        model,
        Tokenizer(checkpoint.tokenizer_json),
        islice(by_document(pieces(find_source(str(data), text_field))), limit),
        block_size=block_size,
        seed=seed,
        relative_half_width=relative_half_width,
        max_samples=max_samples,
        progress=progress,
    )
    del figures["windows"]
    return figures
