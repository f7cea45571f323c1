"""What a manifest must satisfy as a whole: names that are safe, dimensions that agree.

A wrong shape here would let an engine read or write past a buffer on the device, so both the writer
and the reader of a bundle go through these checks. Knows no family: it goes by tensor roles.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NoReturn

from ..errors import BundleError
from .manifest import CACHE_ROLE, GraphSpec, Manifest, TensorSpec

MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.json"

_MEMBER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9][A-Za-z0-9._-]{0,99}){0,7}")


def reject(where: str, wanted: str, found: object) -> NoReturn:
    """Raises the BundleError of a manifest field that is not what it must be."""
    shown = repr(found)
    if len(shown) > 60:
        shown = shown[:57] + "..."
    raise BundleError(
        f"manifest: {where} must be {wanted}, found {shown}; the bundle is damaged or was not "
        "written by dlm-export: export it again"
    )


def choice(value: object, where: str, allowed: Sequence[str]) -> str:
    """Returns `value` if it is one of `allowed`; BundleError otherwise."""
    if not isinstance(value, str) or value not in allowed:
        reject(where, "one of " + ", ".join(allowed), value)
    return value


def check_member_name(name: object) -> str:
    """Returns a safe relative member name; BundleError for `..`, absolute or odd names."""
    if not isinstance(name, str) or not _MEMBER_NAME.fullmatch(name) or name.endswith("."):
        reject(
            "a member name",
            "a plain relative path (no .., no backslash, no leading / or .)",
            name,
        )
    return name


def _check_shape(where: str, spec: TensorSpec, wanted: tuple[int | None, ...]) -> None:
    fits = len(spec.shape) == len(wanted) and all(
        want is None or want == size for want, size in zip(wanted, spec.shape, strict=True)
    )
    if not fits:
        shown = ", ".join("any" if size is None else str(size) for size in wanted)
        reject(f"{where}: the shape of {spec.name}", f"({shown})", spec.shape)


def _check_graph(manifest: Manifest, graph: GraphSpec, where: str) -> None:
    """Dimensions that two fields state must agree, or the device would read past its buffers."""
    roles = {spec.role: spec for spec in (*graph.inputs, *graph.outputs)}
    model, batch = manifest.model, graph.batch
    layers, heads, dim = (model.get(key) for key in ("num_layers", "num_kv_heads", "head_dim"))
    cache = tuple(
        size if isinstance(size, int) else None for size in (batch, layers, 2, heads, dim)
    )
    if "canvas" in roles and roles["canvas"].dtype == "int32":
        _check_shape(where, roles["canvas"], (batch, graph.rows))
    if "start" in roles:
        _check_shape(where, roles["start"], (batch,))
        choice(roles["start"].dtype, f"{where}: the dtype of start", ("int32",))
    for tensor in (*graph.inputs, *graph.outputs):
        if tensor.cache is None:
            continue
        length = graph.context if tensor in graph.inputs else graph.rows
        own = (batch, *[None] * (len(tensor.shape) - 2))
        _check_shape(where, tensor, (length, *(cache if tensor.cache == CACHE_ROLE else own)))
        whole = roles.get(tensor.cache, tensor)
        choice(whole.lifetime, f"{where}: the lifetime of {whole.name}", ("request",))
        if (whole.dtype, whole.shape[1:]) != (tensor.dtype, tensor.shape[1:]):
            reject(
                f"{where}: {tensor.name}", f"rows of {whole.dtype} {whole.shape[1:]}", tensor.shape
            )
    if "logits" in roles:
        _check_shape(where, roles["logits"], (batch, graph.rows, manifest.vocab_size))
    if graph.file not in manifest.members:
        reject(f"{where}.file", "a member of the bundle", graph.file)


def check_together(manifest: Manifest) -> Manifest:
    """Returns the manifest if its parts agree with each other; BundleError otherwise."""
    names = list(manifest.members)
    folders = {name[:end] for name in names for end in range(len(name)) if name[end] == "/"}
    if len({name.casefold() for name in (*names, *folders)}) != len(names) + len(folders):
        reject("members", "different names, whatever the case", names)
    if MANIFEST_NAME in manifest.members or TOKENIZER_NAME not in manifest.members:
        reject("members", f"with {TOKENIZER_NAME} and without {MANIFEST_NAME}", names)
    around = {*manifest.framing.start_ids, *manifest.ends}
    if manifest.mask_token_id in around:
        # Where a mask is the end, no text ends, and none is written.
        reject("mask_token_id", "no start or end token", manifest.mask_token_id)
    keys = [graph.key for graph in manifest.graphs]
    if len(set(keys)) != len(keys):
        reject("graphs", "of different names or dimensions", keys)
    for index, graph in enumerate(manifest.graphs):
        _check_graph(manifest, graph, f"graphs[{index}]")
    return manifest
