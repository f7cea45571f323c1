"""Where a bundle comes from: versions, hashes, and what training says about itself."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import __version__
from ..runtime.archive import describe
from ..train.checkpoint import Checkpoint


def provenance(checkpoint: Checkpoint) -> dict[str, Any]:
    """Versions, hashes and what training says about itself, without paths of this machine."""
    training = dict(checkpoint.config.get("training") or {})
    settings = training.get("settings")
    if isinstance(settings, Mapping):
        kept = {key: value for key, value in settings.items() if key not in ("out", "data")}
        if settings.get("data") is not None:
            kept["data"] = Path(str(settings["data"])).name
        training["settings"] = {
            key: value for key, value in kept.items() if not _names_a_place(value)
        }
    return {
        "checkpoint_sha256": describe(checkpoint.path / "model.safetensors").sha256,
        "training": training,
        "versions": {
            "dlm-edge": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")},
        },
    }


def _names_a_place(value: Any) -> bool:
    return isinstance(value, str) and os.path.isabs(value)
