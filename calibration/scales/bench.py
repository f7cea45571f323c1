"""Models put on the workbench: graphs of one bundle, in any precision, made executable to measure.

Everything that calibration compares runs through the same engines that run bundles, so that what
is measured is what will run, optimisations of the session included.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.manifest import Manifest, Member
from ...runtime.engines import open_engines
from ...runtime.engines.base import EngineSet
from .exposed import save_beside

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
                save_beside(models[graph], folder / file)
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


def describe_graph(model: onnx.ModelProto) -> Member:
    """Describes a graph in memory; in pieces, since one protobuf may not pass 2 GiB."""
    digest, size = hashlib.sha256(), 0
    for item in (*model.graph.node, *model.graph.initializer):
        data = item.SerializeToString(deterministic=True)
        digest.update(data)
        size += len(data)
    return Member(sha256=digest.hexdigest(), size=size)
