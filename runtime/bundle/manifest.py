"""The contract between the desktop and the device: what a bundle says about itself.

Plain data only, so that both sides (and a test without either) can read it. Knows no
family: `family` is a name that each side looks up in its own table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..text.framing import Framing

SCHEMA_VERSION = 2
LIFETIMES = ("run", "step", "request")

CACHE_ROLE = "kv"

GraphKey = tuple[str, tuple[tuple[str, int], ...]]
"""Name of a graph, and its dimensions in alphabetical order: what identifies one shape."""


def cache_role(role: str) -> str | None:
    """Gives the role of the cache that a tensor is, or that its rows are appended to.

    A cache has the role `kv`, or `kv.NAME` where a graph has several; the output with the rows that
    a run adds to it has its role and `_new`. Both have rows on the first axis and the batch on the
    second. None for all other roles.
    """
    cache = role.removesuffix("_new")
    return cache if cache == CACHE_ROLE or cache.startswith(f"{CACHE_ROLE}.") else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One named input or output of a graph."""

    name: str
    """Name in the ONNX graph."""
    dtype: str
    """NumPy name: int32, float32, float16."""
    shape: tuple[int, ...]
    """Concrete shape under the GraphSpec's dimensions."""
    role: str
    """What an update rule finds it by: canvas, start, kv, logits, kv_new, … (`cache_role`)"""
    lifetime: str = "run"
    """How long a value stays: `run` (written for each run), `step` (rewritten by the sampling
    primitives on the device) or `request` (written once per request)."""

    @property
    def cache(self) -> str | None:
        """Role of the cache that this is, or that its rows are appended to; None: neither."""
        return cache_role(self.role)

    @property
    def batch_axis(self) -> int:
        """The axis of a batch's texts."""
        return int(self.cache is not None)


def graph_key(name: str, dims: Mapping[str, int]) -> GraphKey:
    """Identifies a shape of a graph: no two of a bundle have the same key."""
    return name, tuple(sorted(dims.items()))


def dims_text(dims: Mapping[str, int]) -> str:
    """Names dimensions in messages and tables; a batch of one text goes without saying."""
    first = [name for name in ("batch", "rows", "context") if name in dims]
    names = [*first, *sorted(set(dims).difference(first))]
    shown = [f"{name} {dims[name]}" for name in names if (name, dims[name]) != ("batch", 1)]
    return ", ".join(shown) or "batch 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSpec:
    """One static shape of one ONNX file."""

    name: str
    """Name within the family, for example `denoise`."""
    file: str
    """Member name of the ONNX file."""
    dims: Mapping[str, int] = field(hash=False)
    """Size of each named dimension: `batch`, `rows` (positions that one run computes), `context`
    (committed positions that the KV input has room for), and any other that the ONNX file names."""
    purpose: str
    """What the family runs this shape for, in the family's own word: denoise, advance, step, …"""
    block: int | None
    """Text block that this shape serves; None where a block means nothing."""
    precision: str
    """fp32, fp16, int8 or int4: of the weights' arithmetic, not of the inputs and outputs."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def key(self) -> GraphKey:
        """What identifies a shape: the graph's name and its dimensions in order."""
        return graph_key(self.name, self.dims)

    @property
    def batch(self) -> int:
        """Texts that one run serves."""
        return self.dims.get("batch", 1)

    @property
    def rows(self) -> int:
        """Positions that one run computes for each text of the batch."""
        return self.dims.get("rows", 1)

    @property
    def context(self) -> int:
        """Committed positions that the KV input has room for; 0 without a cache."""
        return self.dims.get("context", 0)

    @property
    def label(self) -> str:
        """Names the shape in messages and tables: `denoise (rows 32, context 256)`."""
        return f"{self.name} ({dims_text(self.dims)})"

    @property
    def result(self) -> TensorSpec:
        """What the graph is run for: logits, what a head makes logits of, or its first output."""
        found = (item for item in self.outputs if item.role in ("logits", "hidden"))
        return next(found, self.outputs[0])

    @property
    def new_rows(self) -> tuple[tuple[str, TensorSpec], ...]:
        """What a run adds to caches: the role of each cache, and the output with its new rows."""
        return tuple((item.cache, item) for item in self.outputs if item.cache is not None)

    def tensor(self, role: str) -> TensorSpec:
        """Returns the one input or output with this role; KeyError if there is none."""
        for spec in (*self.inputs, *self.outputs):
            if spec.role == role:
                return spec
        raise KeyError(f"graph {self.name} has no tensor with role {role}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """Size and hash of one file of a bundle."""

    sha256: str
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything that the device needs to know before it opens a graph."""

    family: str
    model: Mapping[str, Any]
    """num_layers, dim, num_heads, num_kv_heads, head_dim, num_parameters, backbone, …"""
    vocab_size: int
    mask_token_id: int | None
    """None for families that have none."""
    eos_token_id: int
    pad_token_id: int | None
    logit_shift: int
    """0: position i's logits predict token i; 1: token i + 1."""
    max_position: int
    """Positions the model was trained for; longer texts slide a window."""
    block_sizes: tuple[int, ...]
    """Block sizes the model was trained on (the canvas length among them for whole-canvas use)."""
    noise_schedule: Mapping[str, Any]
    precision: str
    target: str
    """Name of the target it was made for: cpu, host, orin-nano, …"""
    graphs: tuple[GraphSpec, ...]
    decoding: Mapping[str, Any]
    """Default decoding settings (rule, threshold, …)."""
    provenance: Mapping[str, Any]
    """Versions, checkpoint hash, data, steps."""
    members: Mapping[str, Member] = field(default_factory=dict)
    start_ids: tuple[int, ...] | None = None
    """Tokens in front of every text; None: eos_token_id."""
    end_ids: tuple[int, ...] = ()
    """Tokens beside eos_token_id that end a text, where a family knows several."""
    schema_version: int = SCHEMA_VERSION

    @property
    def ends(self) -> tuple[int, ...]:
        """All tokens that end a text."""
        return tuple(dict.fromkeys((self.eos_token_id, *self.end_ids)))

    @property
    def framing(self) -> Framing:
        """The tokens around a text."""
        start = (self.eos_token_id,) if self.start_ids is None else self.start_ids
        return Framing(start_ids=start, eos_token_id=self.eos_token_id)
