"""The canvases that one export calibrates and measures on: recorded, or read from an earlier one.

Canvases do not depend on precision or target, so that a file of them serves every export of one
checkpoint at the same sizes. Sets that a file lacks are recorded and added to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.bundle.bundle import Bundle
from ..runtime.bundle.manifest import Manifest
from ..runtime.cli.progress import bar
from ..runtime.engines.base import EngineSet
from ..runtime.families.base import LoadedModel
from ..runtime.text.tokenizer import Tokenizer
from .canvases.canvases import CanvasSet
from .canvases.file import read_canvases, write_canvases
from .canvases.modes import reads_as_it_writes
from .canvases.record import (
    CanvasSettings,
    clean_canvases,
    noise_canvases,
    record_canvases,
)
from .canvases.recorder import UnsoundOutputError
from .canvases.texts import Texts
from .graphs import Models
from .layers import WeightLayer
from .options import SETS, QuantisationOptions
from .scales.extremes import unsound, unsound_layer

CALIBRATION = CanvasSettings()
HELD_OUT = CanvasSettings(per_stratum=12, num_decodes=4, num_windows=4)
"""Agreement at positions about to be committed is a share of few rows: one or two per canvas."""
HELD_OUT_NAME = "held out"
MAKERS: Mapping[str, Callable[..., CanvasSet]] = {
    "decode": record_canvases,
    "clean": clean_canvases,
    "noise": noise_canvases,
    HELD_OUT_NAME: record_canvases,
}


class Recording:
    """Records or reads the sets of one export."""

    def __init__(
        self,
        models: Models,
        layers: Mapping[str, Sequence[WeightLayer]],
        manifest: Manifest,
        tokenizer: Tokenizer,
        texts: Texts,
        options: QuantisationOptions,
        say: Callable[[str], None],
    ) -> None:
        """Takes float32 graphs by name, their layers, and the draft manifest with their shapes."""
        self._models, self._layers, self._manifest = models, layers, manifest
        self._texts, self._options, self._say = texts, options, say
        self._banned = tokenizer.missing_ids(manifest.vocab_size)

    def sets(self, model: LoadedModel) -> dict[str, CanvasSet]:
        """Returns every set that is needed, by name; raises CalibrationError.

        Args:
            model: Float32. One whose canvases are read from text has no other sets to compare.
        """
        options = self._options
        rounded = options.precision in ("int8", "int4")
        compared = rounded and options.edits is None and not options.brief
        compared = compared and not reads_as_it_writes(model)
        names = [name for name in MAKERS if compared or name in ("decode", HELD_OUT_NAME)]
        path = options.canvases
        known: dict[str, CanvasSet] = {}
        if path is not None and path.exists():
            self._say(f"reading canvases from {path}")
            known = read_canvases(path, self.owner(), self._manifest.graphs)
        missing = [name for name in names if name not in known]
        known |= {name: self._record(name, model.engines) for name in missing}
        if path is not None and missing:
            self._say(f"writing canvases to {path}")
            with bar() as show:
                write_canvases(path, known, self.owner(), show)
        return {name: known[name] for name in names}

    def owner(self) -> dict[str, Any]:
        """Returns what recorded canvases belong to, in words for a message."""
        return {
            "checkpoint": self._manifest.provenance.get("checkpoint_sha256"),
            "choice of block and context sizes": sorted(
                [spec.name, sorted(spec.dims.items())] for spec in self._manifest.graphs
            ),
            "choice of decoding settings": dict(self._manifest.decoding),
            "calibration text": [_digest(self._texts.calibration), _digest(self._texts.held_out)],
            "seed": self._options.seed,
            "number of canvases": [asdict(CALIBRATION), asdict(HELD_OUT)],
        }

    def _record(self, name: str, whole: EngineSet) -> CanvasSet:
        held_out = name == HELD_OUT_NAME
        make = MAKERS[name]
        extra: dict[str, Any] = {"banned": self._banned} if make is record_canvases else {}
        self._say(f"recording {SETS.get(name, 'held-out canvases')}")
        draft = Bundle(path=Path("draft"), sha256="", manifest=self._manifest, folder=Path("."))
        try:
            with bar() as show:
                return make(
                    draft,
                    self._texts.held_out if held_out else self._texts.calibration,
                    HELD_OUT if held_out else CALIBRATION,
                    seed=self._options.seed + held_out,
                    engines=whole,
                    progress=show,
                    **extra,
                )
        except UnsoundOutputError as error:
            graph = error.canvas.spec.name
            place = unsound_layer(self._models[graph], self._layers[graph], error.canvas)
            raise unsound(place, error.canvas) from error


def _digest(texts: Sequence[np.ndarray]) -> str:
    found = hashlib.sha256()
    for ids in texts:
        found.update(len(ids).to_bytes(8, "little") + np.ascontiguousarray(ids, np.int32).tobytes())
    return found.hexdigest()
