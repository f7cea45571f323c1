"""Graphs of one bundle, in any form, made executable to be measured.

Everything that calibration compares runs through the same engines that run bundles, so what is
measured is what will run, optimisations of the session included.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir

from ..runtime.bundle.bundle import Bundle
from ..runtime.bundle.manifest import GraphSpec, Manifest, Member, TensorSpec
from ..runtime.engines import open_engines
from ..runtime.engines.base import EngineSet
from .graphs import Models, save, without_weights


def describing(manifest: Manifest, models: Models, *, precision: str) -> Manifest:
    """Returns a manifest whose specs have a precision, and the dtypes that the graphs have."""

    graphs = (typed_spec(spec, models[spec.name], precision) for spec in manifest.graphs)
    return replace(manifest, precision=precision, graphs=tuple(graphs))


def typed_spec(spec: GraphSpec, model: ir.Model, precision: str) -> GraphSpec:
    """Returns a spec with a precision, and the dtypes that its graph has."""
    graph = model.graph
    dtypes = {value.name: value.dtype for value in (*graph.inputs, *graph.outputs)}

    def typed(tensor: TensorSpec) -> TensorSpec:
        dtype = dtypes[tensor.name]
        assert dtype is not None
        return replace(tensor, dtype=dtype.numpy().name)

    return replace(
        spec,
        precision=precision,
        inputs=tuple(map(typed, spec.inputs)),
        outputs=tuple(map(typed, spec.outputs)),
    )


@contextmanager
def engines_of(
    manifest: Manifest, models: Models, *, precision: str, target: str
) -> Iterator[EngineSet]:
    """Runs graphs on ONNX Runtime as a bundle of this precision and target would.

    Args:
        models: A model for each graph name of the manifest; left as they are.
    """
    with TemporaryDirectory(prefix="dlm-calibrate-") as name:
        folder = Path(name)
        (folder / "graphs").mkdir()
        files = {spec.name: spec.file for spec in manifest.graphs}
        for graph, file in files.items():
            save(models[graph], folder / file)
        made = replace(
            describing(manifest, models, precision=precision),
            target=target,
            members={file: Member(sha256="", size=0) for file in files.values()},
        )
        draft = Bundle(path=folder, sha256="", manifest=made, folder=folder)
        engines = open_engines(draft, "onnxruntime")
        try:
            yield engines
        finally:
            engines.close()


def describe_graph(model: ir.Model) -> Member:
    """Describes a graph in memory as a member: a hash of nodes and weights, and their bytes."""
    data = without_weights(model).SerializeToString(deterministic=True)
    digest, size = hashlib.sha256(data), len(data)
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        content = value.const_value.tobytes()
        digest.update(content)
        size += len(content)
    return Member(sha256=digest.hexdigest(), size=size)
