"""Checkpoints as people know them elsewhere: open one by path or hub name and write text with it.

    from dlm_edge.train.pretrained import Pipeline
    pipeline = Pipeline.from_pretrained("owner/name")
    print(pipeline.generate("Once upon a time").result().text)
    pipeline.save_pretrained("folder")

The runtime's `Pipeline`, which opens bundles as that does, and a checkpoint over PyTorch, without
export: for looking at a model on the desktop. For speed, and for a board, export a bundle. It
is here because the runtime knows no PyTorch. Knows no family.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..runtime import pipeline as runtime
from ..runtime.bundle.bundle import Bundle, find_bundle, holds_bundle
from ..runtime.errors import CheckpointError, ConfigError
from ..runtime.text.tokenizer import Tokenizer
from .checkpoints.checkpoint import Checkpoint, write_checkpoint
from .checkpoints.convert import open_any
from .checkpoints.gguf import SUFFIX
from .evaluate import open_checkpoint

SAMPLE_TOKENS = 64
"""Of a text that a model in training writes for its log."""
SAMPLE_SECONDS = 20.0


class Pipeline(runtime.Pipeline):
    """A bundle or a checkpoint ready to generate."""

    checkpoint_path: Path | None = None
    """The checkpoint's folder, the hub's cache for a name; None for a bundle."""

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> Pipeline:
        """Opens a bundle, a checkpoint folder, or `owner/name` of the Hugging Face hub.

        Args:
            path: A `.dlm` file or a folder that holds one: that bundle. Another folder, a GGUF
                file, or a name of the hub (`owner/name@revision`; `hf:owner/name` whatever folders
                there are): a checkpoint.
            **options: Of `load`. A checkpoint has `threads` only: PyTorch's in each run; by
                default as many as there are idle cores.

        Raises:
            BundleError: A bundle that is missing, damaged or ambiguous.
            CheckpointError: There is none, it is damaged, or of a family unknown to this version.
            ConfigError: An option that a checkpoint does not have.
        """
        if Path(path).suffix != SUFFIX and holds_bundle(path):
            return cls.load(find_bundle(path), **options)
        threads = options.pop("threads", None)
        if options:
            raise ConfigError(
                f"{path} is no bundle, and a checkpoint has no option {min(options)}: it runs on "
                "PyTorch as it is; leave it out, or make a bundle with dlm-export"
            )
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise ConfigError(f"threads must be 1 or more, not {threads!r}")
        return cls.of_checkpoint(open_any(path), threads)

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint, threads: int | None = None) -> Pipeline:
        """Opens a checkpoint that was read; `threads` and errors as for `from_pretrained`."""
        model, folder = open_checkpoint(checkpoint, threads), checkpoint.path
        bundle = Bundle(path=folder, sha256="", manifest=model.manifest, folder=folder)
        opened = cls(bundle, model, Tokenizer(checkpoint.tokenizer_json))
        opened.checkpoint_path = folder
        return opened

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the checkpoint's three files, as the function `save_pretrained` does.

        Raises:
            CheckpointError: It was opened from a bundle, its folder is gone, or the new one cannot
                be written.
        """
        if self.checkpoint_path is None:
            raise CheckpointError(
                f"{self.bundle.path} is a bundle, which holds graphs, not a checkpoint: copy the "
                "file, or save the checkpoint that it was made of"
            )
        kept = open_any(self.checkpoint_path)
        write_checkpoint(Path(folder), kept.config, kept.weights, kept.tokenizer_json)


def draw_texts(checkpoint: Checkpoint, number: int) -> list[str]:
    """Has a checkpoint write texts of `SAMPLE_TOKENS` tokens at temperature 1; fewer where they
    take more than `SAMPLE_SECONDS`."""
    texts: list[str] = []
    end = time.monotonic() + SAMPLE_SECONDS
    with torch.random.fork_rng(devices=[]), Pipeline.of_checkpoint(checkpoint) as pipeline:
        most = min(SAMPLE_TOKENS, pipeline.manifest.max_position - 1)
        for index in range(number):
            found = pipeline.generate(max_tokens=most, sample_index=index, temperature=1.0)
            texts.append(found.result().text)
            if time.monotonic() > end:
                break
    return texts


def save_pretrained(
    model: nn.Module, config: Mapping[str, Any], tokenizer_json: str, folder: str | Path
) -> None:
    """Writes config.json, model.safetensors and tokenizer.json, whole or not at all each.

    Args:
        folder: Made if missing; `dlm-export`, `--init` and `Pipeline.from_pretrained` read it, and
            so does the hub.

    Raises:
        CheckpointError: A weight is not finite, or the folder cannot be written.
    """
    write_checkpoint(Path(folder), config, model.state_dict(), tokenizer_json)
