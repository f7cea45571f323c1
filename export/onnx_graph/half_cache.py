"""The cache of a typed graph in float16, in the graph and in the manifest that describes it."""

from __future__ import annotations

from dataclasses import replace

import onnx

from ...runtime.bundle.manifest import Manifest, TensorSpec
from .typed import narrow_cache


def halve_cache(model: onnx.ModelProto, manifest: Manifest, name: str) -> Manifest:
    """Halves the bytes of a typed graph's cache, in place; returns the manifest that says so.

    On a board a step reads the cache beside the weights, at full context about as much as a fifth
    of them (12 layers of 768, 512 positions): float32 would be twice that, for the same values.
    """
    tensors = {t.role: t for spec in manifest.graphs if spec.name == name
               for t in (*spec.inputs, *spec.outputs)}  # fmt: skip
    kv, new = tensors.get("kv"), tensors.get("kv_new")
    if kv is None or new is None or not narrow_cache(model, kv.name, new.name):
        return manifest

    def halved(side: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(t, dtype="float16") if t.role in ("kv", "kv_new") else t for t in side)

    specs = (
        replace(spec, inputs=halved(spec.inputs), outputs=halved(spec.outputs))
        if spec.name == name
        else spec
        for spec in manifest.graphs
    )
    return replace(manifest, graphs=tuple(specs))
