"""The weights of a checkpoint folder: one safetensors file, or several with an index.

The names and the index are Hugging Face's. Knows no model.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ...runtime.errors import CheckpointError, brief
from ...runtime.files import parse_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Reads every tensor of a folder, as stored; raises CheckpointError."""
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return _read_file(folder / WEIGHTS)
    places = read_index(folder / INDEX)
    found: dict[str, torch.Tensor] = {}
    for file in sorted(set(places.values())):
        found.update(_read_file(folder / file))
    missing = sorted(set(places) - set(found))
    if missing:
        raise CheckpointError(
            f"{folder}: {places[missing[0]]} lacks the tensor {missing[0]} that {INDEX} promises; "
            "copy the whole folder again"
        )
    return found


def tensor_names(path: Path) -> list[str]:
    """Names the tensors of one file without reading them; raises CheckpointError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged ({brief(error, 200)}); copy it again") from error


def read_index(path: Path) -> dict[str, str]:
    """Gives the file of each tensor; raises CheckpointError."""
    try:
        places = parse_json(path.read_text(encoding="utf-8"))["weight_map"]
        wrong = [file for file in places.values() if Path(file).name != file]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: not an index of weights ({brief(error, 200)}); copy it again"
        ) from error
    if wrong or not places:
        raise CheckpointError(f"{path}: not an index of weights beside it; copy it again")
    return places


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        if any(path.parent.glob("pytorch_model*.bin")):
            raise CheckpointError(
                f"{path.parent}: weights are in pytorch_model*.bin only, which can run code and is "
                "not read; take a revision with model.safetensors (the hub offers one as "
                "owner/name@refs/pr/1 for many), or load them with transformers and "
                "save_pretrained(FOLDER)"
            )
        raise CheckpointError(f"{path.parent}: {path.name} is missing; copy the whole folder")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged ({brief(error, 200)}); copy it again") from error
