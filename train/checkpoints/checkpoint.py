"""Checkpoints on disk: the folder that export reads, and the state that `--resume` reads.

    OUT/config.json  model.safetensors  tokenizer.json    the best weights so far (EMA if on)
    OUT/tokenizer_config.json …                           what `--init` brought along, if anything
    OUT/last/…                                            the same three, of the last save
    OUT/state/step-00001000/state.pt                      everything to continue exactly
    OUT/train.json                                        the settings of the run

Files appear whole or not at all. No family is known here: config.json is the family's mapping.
A causal model with a public backbone is written so that `transformers` loads the folder as well:
tensors under Hugging Face's names, its keys in config.json beside ours.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...runtime.errors import CheckpointError, brief
from ...runtime.files import parse_json
from ..files import new_folder, remove_unfinished, write_file, write_text
from ..nn.config import ModelConfig
from .ddit import is_ddit, read_ddit_tensors
from .hub import COMPANIONS, config_path, tokenizer_file
from .hugging_face import is_hugging_face, read_tensors, write_shape, write_tensors
from .tensor_files import WEIGHTS, read_weights

FORMAT_VERSION = 1
KEPT_STATES = 2
"""Saved states that are kept: one more than needed, in case the last is lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a checkpoint folder holds, read and checked."""

    path: Path
    config: dict[str, Any]
    """config.json."""
    weights: dict[str, torch.Tensor]
    """float32 on the CPU."""
    tokenizer_json: str
    companions: dict[str, str] = field(default_factory=dict)
    """Further files by name: the tokenizer's settings with its chat template, …"""


def write_checkpoint(
    folder: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
    tokenizer_json: str,
    companions: Mapping[str, str] | None = None,
) -> None:
    """Writes the three files of a checkpoint, and its companions; raises CheckpointError."""
    from safetensors.torch import save_file

    check_finite(weights, str(folder))
    tensors = {name: t.detach().float().cpu().contiguous() for name, t in weights.items()}
    for twin in _twins(tensors):
        del tensors[twin]
    shape = _hugging_face_shape(config)
    foreign = {}
    if shape is not None:
        tensors, foreign = write_tensors(tensors, shape), write_shape(shape)
    metadata = {"format": "pt", "family": str(config["family"])}
    full = {"format_version": FORMAT_VERSION, **foreign, **config}
    with _writing(folder):
        write_file(folder / WEIGHTS, lambda path: save_file(tensors, path, metadata))
        write_text(folder / "tokenizer.json", tokenizer_json)
        for name, text in (companions or {}).items():
            write_text(folder / name, text)
        write_text(folder / "config.json", json.dumps(full, indent=2) + "\n")


def _hugging_face_shape(config: Mapping[str, Any]) -> ModelConfig | None:
    """The shape of a model whose folder is in Hugging Face's format; None for others.

    One that sees both sides would load there as what it is not.
    """
    model = config["model"]
    if model.get("backbone", "native") == "native" or not model.get("causal"):
        return None
    return ModelConfig.from_json(model)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Makes one line of a disk that is full or gone, whichever class its writer raises."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError, RuntimeError) as error:  # the last is torch.save's
        reason = brief(error, 120)
        raise CheckpointError(
            f"cannot write the checkpoint {folder} ({reason}); what was saved before is whole: "
            "free some space, then continue with --resume"
        ) from error


def read_files(
    folder: Path,
    config: dict[str, Any],
    tokenizer: str | Path | None = None,
    *,
    sees_noise: bool = False,
) -> Checkpoint:
    """Reads the files beside a config.json that was read; raises CheckpointError.

    Args:
        tokenizer: Where the tokenizer of a checkpoint is that has none; see `tokenizer_file`.
        sees_noise: Whether the layers of a DDiT are conditioned on the noise level.
    """
    tokenizer_path = tokenizer_file(folder, tokenizer)
    weights = read_weights(folder)
    if is_hugging_face(weights):
        weights = read_tensors(weights, ModelConfig.from_json(config["model"]), str(folder))
    elif is_ddit(weights):
        shape = ModelConfig.from_json(config["model"])
        weights = read_ddit_tensors(weights, shape, str(folder), folded=not sees_noise)
    check_finite(weights, str(folder))
    return Checkpoint(
        path=folder,
        config=config,
        weights=weights,
        tokenizer_json=_read_text(tokenizer_path),
        companions=read_companions(folder),
    )


def read_companions(folder: Path) -> dict[str, str]:
    """Reads the companions that a folder has; raises CheckpointError for one that is no text."""
    beside = [name for name in COMPANIONS if (folder / name).is_file()]
    return {name: _read_text(folder / name) for name in beside}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({brief(error, 200)}); copy it again"
        ) from error


def read_json(folder: Path) -> dict[str, Any]:
    """Reads config.json of any origin; raises CheckpointError."""
    path = config_path(folder)
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not readable as JSON ({brief(error, 200)}); copy it again"
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: not a config of this program (no family in it)")
    return config


def read_config(folder: Path) -> dict[str, Any]:
    """Reads config.json of a checkpoint of ours; raises CheckpointError."""
    config, path = read_json(folder), folder / "config.json"
    if not isinstance(config.get("family"), str):
        if "model_type" in config:
            raise CheckpointError(
                f"{folder}: a public checkpoint, not one that dlm-train wrote: export it as it is, "
                "or give it to dlm-train as --init"
            )
        raise CheckpointError(f"{path}: not a config of this program (no family in it)")
    if config.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {config.get('format_version')!r}, this program reads "
            f"{FORMAT_VERSION}; use the version that wrote it"
        )
    if not isinstance(config.get("model"), dict):
        raise CheckpointError(f"{path}: the model's shape is missing; copy it again")
    _check_numbers(path, config)
    return config


def _check_numbers(path: Path, config: Mapping[str, Any]) -> None:
    """Raises CheckpointError for special ids and block sizes that no checkpoint has."""
    rows, sizes = config.get("vocab_size"), config.get("block_sizes")
    found = [config.get(f"{name}_token_id", "missing") for name in ("eos", "mask", "pad")]
    ids = [found[0], *(number for number in found[1:] if number is not None)]
    if not _are_numbers([rows], 1) or not _are_numbers(ids, 0) or max(ids) >= rows:
        raise CheckpointError(
            f"{path}: the special tokens have the ids {found} (end of text, mask, padding) in a "
            f"vocabulary of {rows}, which cannot be; copy it again"
        )
    if found[0] == found[1]:
        raise CheckpointError(f"{path}: end of text and mask are one token; copy it again")
    if not isinstance(sizes, list) or not sizes or not _are_numbers(sizes, 1):
        raise CheckpointError(f"{path}: block_sizes is {sizes!r}, no list of sizes; copy it again")


def _are_numbers(values: Iterable[Any], least: int) -> bool:
    return all(type(value) is int and value >= least for value in values)


def load_weights(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Copies a checkpoint's weights into a model of the same shape.

    Raises:
        CheckpointError: naming the first tensor that is missing, unknown or of another shape.
    """
    model.load_state_dict(fitting_weights(model, checkpoint))


def fitting_weights(model: torch.nn.Module, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Gives a checkpoint's weights as a model's state, tied ones twice; raises as load_weights."""
    wanted = model.state_dict()
    given = dict(checkpoint.weights)
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        twin = first.setdefault(id(parameter), name)
        if twin in given:
            given.setdefault(name, given[twin])
    for name, tensor in wanted.items():
        if name not in given:
            raise CheckpointError(f"{checkpoint.path}: weight {name} is missing")
        if given[name].shape != tensor.shape:
            raise CheckpointError(
                f"{checkpoint.path}: weight {name} is {tuple(given[name].shape)}, the model needs "
                f"{tuple(tensor.shape)}; choose the same shape and vocabulary"
            )
    unknown = sorted(set(given) - set(wanted))
    if unknown:
        raise CheckpointError(f"{checkpoint.path}: unknown weight {unknown[0]}; another shape?")
    return given


def _twins(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that share an earlier one's memory (tied embeddings)."""
    known: set[tuple[int, torch.Size]] = set()
    twins = []
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tensor.shape)
        if key in known and tensor.numel():
            twins.append(name)
        known.add(key)
    return twins


def check_finite(weights: Mapping[str, torch.Tensor], where: str) -> None:
    """Raises CheckpointError naming the first tensor with NaN or infinity in it."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{where}: weight {name} holds NaN or infinity: the training diverged; "
                "use an earlier checkpoint or a lower --lr"
            )


def save_state(out: Path, step: int, state: Mapping[str, Any]) -> None:
    """Writes a state whole or not at all, then drops all but the last few."""
    folder = out / "state"
    with _writing(out), new_folder(folder / f"step-{step:08d}") as beside:
        torch.save(dict(state), beside / "state.pt")
    for old in saved_states(out)[:-KEPT_STATES]:
        shutil.rmtree(old)
    remove_unfinished(folder, older_than_s=3600)


def saved_states(out: Path) -> list[Path]:
    """Returns the folders of finished states, oldest first."""
    return sorted(p for p in (out / "state").glob("step-*") if (p / "state.pt").is_file())


def load_state(out: Path) -> dict[str, Any] | None:
    """Reads the newest state; None if none was saved yet; raises CheckpointError."""
    found = saved_states(out)
    if not found:
        return None
    path = found[-1] / "state.pt"
    try:
        # weights_only: tensors and plain values; a state from elsewhere runs no code.
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch.load raises whatever zip and unpickler raise.
        raise CheckpointError(
            f"{path}: damaged ({type(error).__name__}); delete {found[-1]} to use the state before"
        ) from error
