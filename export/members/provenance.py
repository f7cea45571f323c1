"""Where a bundle comes from: versions, hashes, and what training says about itself."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ... import __version__
from ...runtime.bundle.archive import describe
from ...train.checkpoints.checkpoint import Checkpoint
from ...train.checkpoints.tensor_files import WEIGHTS


def provenance(checkpoint: Checkpoint) -> dict[str, Any]:
    """Versions, hashes and what training says about itself, without paths of this machine."""
    training = dict(checkpoint.config.get("training") or {})
    settings = training.get("settings")
    if isinstance(settings, Mapping):
        kept = {key: value for key, value in settings.items() if key not in ("out", "data", "init")}
        for key in ("data", "init"):
            if settings.get(key) is not None:
                kept[key] = _without_folders(str(settings[key]))
        training["settings"] = {
            key: value
            for key, value in kept.items()
            if not (isinstance(value, str) and os.path.isabs(value))
        }
    source = checkpoint.config.get("source")
    return {
        **({"source": dict(source)} if source else {}),
        "checkpoint_sha256": _sha256(checkpoint.path),
        "training": _finite(training),
        "versions": {
            "dlm-edge": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")},
        },
    }


def _sha256(path: Path) -> str:
    """Of the file of the weights; of several, that of their hashes in the order of their names."""
    if path.is_file():
        return describe(path).sha256
    files = sorted(path.glob("*.safetensors"))
    if (path / WEIGHTS).is_file() or not files:
        return describe(path / WEIGHTS).sha256
    return describe("".join(describe(file).sha256 for file in files).encode()).sha256


def _without_folders(name: str) -> str:
    """The name of a file or folder here; a name of the hub as it is."""
    return Path(name).name if os.path.isabs(name) or Path(name).exists() else name


def _finite(value: Any) -> Any:
    """The value without infinities and NaN (a run that was never evaluated has some): no JSON."""
    if isinstance(value, Mapping):
        kept = {key: _finite(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if not _is_nothing(item)}
    if isinstance(value, list):
        return [None if _is_nothing(item) else _finite(item) for item in value]
    return value


def _is_nothing(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
