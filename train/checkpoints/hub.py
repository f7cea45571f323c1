"""Where a checkpoint is: a folder, or a repository of the Hugging Face hub.

A checkpoint folder is config.json, model.safetensors (or its parts and their index) and
tokenizer.json, which is also what the hub holds: upload such a folder as it is
(`hf upload owner/name FOLDER`), and load it by name. Downloads are kept in the hub's own cache, so
a second load needs no network. Knows no family.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from ...runtime.errors import CheckpointError, brief
from .gguf import SUFFIX

PREFIX = "hf:"
"""Marks a name of the hub that a folder here might have, too."""
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
COMPANIONS = (
    TOKENIZER_CONFIG,
    "chat_template.jinja",
    "chat_template.json",
    GENERATION_CONFIG,
    SPECIAL_TOKENS,
)
"""Files that a checkpoint may have beside them, and that stay with it."""
README = "README.md"
"""The card of a public checkpoint, whose first lines name its licence."""
LICENCE_KEYS = ("license", "license_name", "license_link")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


def checkpoint_folder(where: str | Path) -> Path:
    """Gives the folder of a checkpoint, downloaded if need be.

    Args:
        where: A folder; else `owner/name` or `owner/name@revision` of the hub. With `hf:` in front
            it is the latter whatever folders there are.

    Raises:
        CheckpointError: The hub has no such checkpoint, or cannot be reached.
    """
    text = str(where)
    name = text.removeprefix(PREFIX)
    if text == name and (Path(where).exists() or not _NAME.fullmatch(name)):
        return Path(where)
    if not _NAME.fullmatch(name):
        raise CheckpointError(f"{text}: wanted hf:owner/name or hf:owner/name@revision")
    return _download(*name.partition("@")[::2])


def find_checkpoint(where: str | Path) -> Path:
    """Gives a checkpoint's GGUF file, or its folder if that has a config.json; reads neither.

    Raises:
        CheckpointError: There is none, here or on the hub.
    """
    if Path(where).suffix == SUFFIX:
        if not Path(where).is_file():
            raise CheckpointError(f"{where}: no such file; check the path")
        return Path(where)
    folder = checkpoint_folder(where)
    config_path(folder)
    return folder


def tokenizer_file(folder: Path, other: str | Path | None) -> Path:
    """Gives the tokenizer.json of a checkpoint.

    Args:
        other: A file, a folder or a name of the hub that has the tokenizer of a checkpoint without
            one; None: it has its own.

    Raises:
        CheckpointError: There is none, there are two, or the hub cannot be reached.
    """
    own = folder / TOKENIZER
    if own.is_file():
        if other is not None:
            raise CheckpointError(f"{folder} has a tokenizer of its own: leave --tokenizer out")
        return own
    if other is None:
        raise CheckpointError(
            f"{folder}: tokenizer.json is missing; copy the whole folder, or name the tokenizer "
            "that the model was trained with: --tokenizer openai-community/gpt2 for GPT-2's"
        )
    name, place = str(other).removeprefix(PREFIX), Path(other)
    if not place.exists() and _NAME.fullmatch(name):
        place = _download(*name.partition("@")[::2], weights=False)
    place = place / TOKENIZER if place.is_dir() else place
    if not place.is_file():
        raise CheckpointError(f"--tokenizer {other}: no tokenizer.json there; check the path")
    return place


def read_source(where: str | Path, folder: Path) -> dict[str, str]:
    """Gives where a public checkpoint comes from, as far as it is known.

    Returns:
        `name`, without folders of this machine; `revision`, of one of the hub's; `licence`, as its
        card names it.
    """
    named = str(where).removeprefix(PREFIX)
    found = {"name": folder.resolve().name if Path(named).exists() else named.partition("@")[0]}
    if folder.parent.name == "snapshots":
        found["revision"] = folder.name
    licence = _licence(folder / README)
    return {**found, **({"licence": licence} if licence else {})}


def _licence(card: Path) -> str:
    """The licence that a card's first lines name; empty if there is none."""
    try:
        lines = card.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ""
    if not lines or lines[0].strip() != "---":
        return ""
    named: dict[str, str] = {}
    for line in lines[1:]:
        if line.strip() == "---":
            break
        key, colon, value = line.partition(":")
        if colon and key in LICENCE_KEYS:
            named[key] = value.strip().strip("'\"")
    return ", ".join(named[key] for key in LICENCE_KEYS if named.get(key))


def config_path(folder: Path) -> Path:
    """Gives a checkpoint's config.json; raises CheckpointError if it has none."""
    if folder.suffix == ".dlm" and folder.is_file():
        raise CheckpointError(f"{folder} is a bundle, not a checkpoint: dlm-run runs it as it is")
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: no checkpoint here (config.json is missing)")
    return path


def _download(name: str, revision: str, *, weights: bool = True) -> Path:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError as error:
        raise CheckpointError(
            f"{name} is no folder here, and the hub needs the package huggingface_hub ({error}): "
            "pip install huggingface_hub, or check the path"
        ) from error

    def fetch(file: str) -> Path:
        return Path(hf_hub_download(name, file, revision=revision or None))

    # Needs torch, which reading a name does not.
    from .tensor_files import INDEX, WEIGHTS, read_index

    try:
        if not weights:
            return fetch(TOKENIZER).parent
        path = fetch("config.json")
        for file in (TOKENIZER, *COMPANIONS, README):
            with contextlib.suppress(EntryNotFoundError):
                fetch(file)
        try:
            fetch(WEIGHTS)
        except EntryNotFoundError:
            for file in sorted(set(read_index(fetch(INDEX)).values())):
                fetch(file)
    except (OSError, ValueError) as error:  # the client's own errors are both
        reason = brief(error, 160)
        raise CheckpointError(
            f"{name} is no folder here and could not be had from the Hugging Face hub "
            f"({type(error).__name__}: {reason}): check the path or name, and the network"
        ) from error
    return path.parent
