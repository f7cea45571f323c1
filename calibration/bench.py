"""Models put on the workbench: graphs of one bundle, in any precision, made executable to measure.

Everything that calibration compares runs through the same engines that run bundles, so that what
is measured is what will run, optimisations of the session included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from ..runtime.bundle import Bundle
from ..runtime.engines import open_engines
from ..runtime.engines.base import EngineSet
from ..runtime.manifest import Manifest, Member

Models = Mapping[str, onnx.ModelProto]
"""By graph name."""


class Workbench:
    """Opens sets of graphs that share one manifest's shapes."""

    def __init__(self, manifest: Manifest) -> None:
        """Takes the manifest of the floating-point draft: shapes, family, ids."""
        self.manifest = manifest

    @contextmanager
    def engines(self, models: Models, *, precision: str, target: str) -> Iterator[EngineSet]:
        """Runs graphs on ONNX Runtime as a bundle of this precision and target would.

        Args:
            models: A model for each graph name of the manifest; left as they are.
            precision: Of the bundle.
            target: Of the bundle.
        """
        with TemporaryDirectory(prefix="dlm-calibrate-") as name:
            folder = Path(name)
            (folder / "graphs").mkdir()
            files = {spec.name: spec.file for spec in self.manifest.graphs}
            for graph, file in files.items():
                _save(models[graph], folder / file)
            manifest = replace(
                self.manifest,
                precision=precision,
                target=target,
                graphs=tuple(replace(spec, precision=precision) for spec in self.manifest.graphs),
                members={file: Member(sha256="", size=0) for file in files.values()},
            )
            draft = Bundle(path=folder, sha256="", manifest=manifest, folder=folder)
            engines = open_engines(draft, "onnxruntime")
            try:
                yield engines
            finally:
                engines.close()


def _save(model: onnx.ModelProto, path: Path) -> None:
    """Writes a model with its tensors beside it: one file may not pass 2 GiB."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # saving moves the tensors out of the model it is given
    onnx.save(copy, str(path), save_as_external_data=True, location=f"{path.stem}.data")
