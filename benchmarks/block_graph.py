"""The block step of a transformer as a graph of sizes only: what `dlm-export` would trace for a
board, without making the weights. For planning models that are not trained, or too large to make.

The same operators in the same order as the exporter's float16 graph of the native backbone, and
beyond it grouped queries, biases on queries, keys and values, and the linear layers that boards get
in int8 (W8A8, OUTLIERS channels of each layer in a float16 product of their own) and in int4
(weights alone, by groups). A test holds it to a graph that was really exported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..jetson.graph.onnx_graph import Graph, Initialiser, Node, Port
from ..runtime.bundle.manifest import GraphSpec, Manifest, TensorSpec

FILE = "graphs/denoise.onnx"
OUTLIERS = 16
"""Channels of a layer that int8 keeps apart: of 8, 16 and 32 what pretrained layers mostly take."""
GROUP = 128
"""Inputs that share a step in int4."""
_FLOAT, _LONG, _HALF = 1, 7, 10
"""ONNX's codes of float32, int64 and float16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerShape:
    """Dimensions of a decoder-only transformer with a gated MLP."""

    name: str
    dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_dim: int
    vocab_size: int
    positions: int
    tied: bool = False
    """Whether the head's matrix is the embedding's."""
    qkv_bias: bool = False
    source: str = ""

    @property
    def qkv_columns(self) -> int:
        """Columns of the fused projection."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim


class _Builder:
    """Collects nodes and initialisers."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.initialisers: dict[str, Initialiser] = {}

    def op(self, name: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; returns its output's name, or a tuple of them."""
        made = tuple(f"v{len(self.nodes)}_{i}" for i in range(outputs))
        self.nodes.append(Node(op=name, inputs=inputs, outputs=made, attributes=attributes))
        return made[0] if outputs == 1 else made

    def weight(self, name: str, *shape: int, dtype: str = "float16") -> str:
        """Adds an initialiser whose values nobody needs."""
        self.initialisers[name] = Initialiser(name=name, dtype=dtype, shape=shape, value=None)
        return name

    def ints(self, *values: int) -> str:
        """Adds a list of integers."""
        name = "ints" + "_".join(map(str, values))
        self.initialisers[name] = Initialiser(
            name=name, dtype="int64", shape=(len(values),), value=np.array(values, np.int64)
        )
        return name

    def scalar(self, dtype: str) -> str:
        """Adds a constant of one item."""
        return self.weight(f"one_{dtype}", 1, dtype=dtype)

    def cast(self, value: str, to: int) -> str:
        """Adds a Cast."""
        return self.op("Cast", value, to=to)

    def linear(self, value: str, name: str, rows: int, columns: int, precision: str) -> str:
        """Adds a product with a weight in fp16, int8 or int4."""
        if precision == "fp16":
            return self.op("MatMul", value, self.weight(name, rows, columns))
        stored = self.weight(name, rows, columns, dtype=precision)
        if precision == "int4":
            steps = self.weight(f"{name}.scale", rows // GROUP, columns)
            wide = self.op("DequantizeLinear", stored, steps, axis=0, block_size=GROUP)
            return self.op("MatMul", value, wide)
        wide = self.op("DequantizeLinear", stored, self.weight(f"{name}.scale", columns), axis=1)
        one, zero = self.scalar("float16"), self.scalar("int8")
        narrow = self.op("QuantizeLinear", value, one, zero)
        most = self.op("MatMul", self.op("DequantizeLinear", narrow, one, zero), wide)
        few = self.op("Gather", value, self.ints(*range(OUTLIERS)), axis=-1)
        few = self.op("MatMul", few, self.weight(f"{name}.outliers", OUTLIERS, columns))
        return self.op("Add", most, few)


def block_graph(shape: TransformerShape, precision: str = "fp16") -> Graph:
    """Returns the float16 graph of a block step, its linear layers in fp16, int8 or int4.

    Embedding, head, norms and attention's own products stay float16 (float32 where the exporter
    keeps it).
    """
    make = _Builder()
    past = make.op("Shape", "kv", start=0, end=1)
    own = make.op("Shape", "ids", start=1, end=2)
    offsets = make.op("Unsqueeze", _range(make, own), make.ints(0))
    cosine, sine = _angles(make, shape, offsets)
    bias = _bias(make, past, own, offsets)
    table = make.weight("embedding", shape.vocab_size, shape.dim)
    x = make.cast(make.op("Gather", table, "ids"), _FLOAT)
    stored = []
    for layer in range(shape.num_layers):
        x, new = _layer(make, shape, layer, x, "kv", (cosine, sine), bias, precision)
        stored.append(new)
    logits = _norm(make, shape, x, "final_norm")
    if shape.tied:
        head = make.op("Transpose", table, perm=(1, 0))
    else:
        head = make.weight("head", shape.dim, shape.vocab_size)
    logits = make.cast(make.op("MatMul", logits, head), _FLOAT)
    joined = make.op("Concat", *(make.op("Unsqueeze", x, make.ints(2)) for x in stored), axis=2)
    kv_new = make.op("Transpose", joined, perm=(1, 0, 2, 3, 4, 5))
    spec = _spec(shape, 1, 1, precision)
    return Graph(
        nodes=tuple(make.nodes),
        initialisers=make.initialisers,
        inputs=(
            Port(name="ids", dtype="int32", shape=(1, "rows")),
            Port(name="start", dtype="int32", shape=(1,)),
            Port(name="kv", dtype="float16", shape=("context", *spec.tensor("kv").shape[1:])),
            Port(name="split", dtype="int32", shape=(1,)),
        ),
        outputs=(
            Port(name=logits, dtype="float32", shape=(1, "rows", shape.vocab_size)),
            Port(name=kv_new, dtype="float16", shape=("rows", *spec.tensor("kv").shape[1:])),
        ),
    )


def _range(make: _Builder, length: str) -> str:
    """The numbers below a length of shape (1,)."""
    return make.op("Range", _index(make, 0), make.op("Squeeze", length), _index(make, 1))


def _angles(make: _Builder, shape: TransformerShape, offsets: str) -> tuple[str, str]:
    """Cosine and sine (1, block, 1, head_dim) in float16, of offsets (1, block) in the block."""
    start = make.op("Unsqueeze", make.cast("start", _LONG), make.ints(1))
    positions = make.cast(make.op("Add", start, offsets), _FLOAT)
    rates = make.weight("inv_freq", shape.head_dim // 2, dtype="float32")
    half = make.op("Mul", make.op("Unsqueeze", positions, make.ints(2)), rates)
    angles = make.op("Unsqueeze", make.op("Concat", half, half, axis=-1), make.ints(-2))
    return tuple(make.cast(make.op(name, angles), _HALF) for name in ("Cos", "Sin"))


def _bias(make: _Builder, past: str, own: str, offsets: str) -> str:
    """Hides (1, 1, block, context + block) what is not committed, and what `split` parts."""
    one = make.ints(1)
    keys = make.op("Unsqueeze", _range(make, past), make.ints(0))
    hidden = make.op("GreaterOrEqual", keys, make.cast(make.op("Unsqueeze", "start", one), _LONG))
    hidden = make.op("Unsqueeze", hidden, make.ints(1, 2))
    rows = make.op("Concat", one, one, own, one, axis=0)
    earlier = make.op("Expand", make.cast(hidden, _FLOAT), rows)
    later = make.op("GreaterOrEqual", offsets, make.cast(make.op("Unsqueeze", "split", one), _LONG))
    before = make.op("Not", make.op("Unsqueeze", later, make.ints(2)))
    hidden = make.op("And", make.op("Unsqueeze", later, one), before)
    inside = make.cast(make.op("Unsqueeze", hidden, one), _FLOAT)
    return make.op("Mul", make.op("Concat", earlier, inside, axis=-1), make.scalar("float32"))


def _norm(make: _Builder, shape: TransformerShape, x: str, name: str) -> str:
    square = make.op("Pow", x, make.scalar("float32"))
    mean = make.op("ReduceMean", square, make.ints(-1), keepdims=1)
    root = make.op("Sqrt", make.op("Add", mean, make.scalar("float32")))
    scaled = make.cast(make.op("Div", x, root), _HALF)
    return make.op("Mul", scaled, make.weight(name, shape.dim))


def _layer(
    make: _Builder,
    shape: TransformerShape,
    layer: int,
    x: str,
    cache: str,
    angles: tuple[str, str],
    bias: str,
    precision: str,
) -> tuple[str, str]:
    """One layer on the residual stream x in float32; returns the stream and the block's keys and
    values (1, block, 2, kv_heads, head_dim)."""
    name = f"layer{layer}"
    heads, kv_heads, size = shape.num_heads, shape.num_kv_heads, shape.head_dim
    past = make.op("Gather", cache, _index(make, layer), axis=2)
    normed = _norm(make, shape, x, f"{name}.attention_norm")
    mixed = make.linear(normed, f"{name}.qkv", shape.dim, shape.qkv_columns, precision)
    if shape.qkv_bias:
        mixed = make.op("Add", mixed, make.weight(f"{name}.qkv_bias", shape.qkv_columns))
    mixed = make.op("Reshape", mixed, make.ints(1, -1, heads + 2 * kv_heads, size), allowzero=1)
    turned = _turn(make, _heads(make, mixed, 0, heads + kv_heads), angles)
    query = make.op("Mul", _heads(make, turned, 0, heads), make.scalar("float16"))
    key = _heads(make, turned, heads, heads + kv_heads)
    value = _heads(make, mixed, heads + kv_heads, heads + 2 * kv_heads)
    parts = [make.op("Unsqueeze", part, make.ints(2)) for part in (key, value)]
    new = make.op("Concat", *parts, axis=2)
    both = make.op("Concat", make.op("Transpose", past, perm=(1, 0, 2, 3, 4)), new, axis=1)
    seen = _attend(make, shape, query, both, bias)
    out = make.linear(seen, f"{name}.out", heads * size, shape.dim, precision)
    x = make.op("Add", x, make.cast(out, _FLOAT))
    normed = _norm(make, shape, x, f"{name}.mlp_norm")
    wide = make.linear(normed, f"{name}.gate_up", shape.dim, 2 * shape.hidden_dim, precision)
    gate, up = make.op("Split", wide, outputs=2, axis=2, num_outputs=2)
    gated = make.op("Mul", make.op("Mul", gate, make.op("Sigmoid", gate)), up)
    down = make.linear(gated, f"{name}.down", shape.hidden_dim, shape.dim, precision)
    return make.op("Add", x, make.cast(down, _FLOAT)), new


def _index(make: _Builder, number: int) -> str:
    """A scalar index."""
    name = f"index{number}"
    make.initialisers[name] = Initialiser(
        name=name, dtype="int64", shape=(), value=np.array(number, np.int64)
    )
    return name


def _heads(make: _Builder, value: str, start: int, stop: int) -> str:
    return make.op("Slice", value, *(make.ints(size) for size in (start, stop, 2, 1)))


def _turn(make: _Builder, x: str, angles: tuple[str, str]) -> str:
    """Rotary positions."""
    first, second = make.op("Split", x, outputs=2, axis=3, num_outputs=2)
    other = make.op("Concat", make.op("Neg", second), first, axis=-1)
    return make.op("Add", make.op("Mul", x, angles[0]), make.op("Mul", other, angles[1]))


def _attend(make: _Builder, shape: TransformerShape, query: str, both: str, bias: str) -> str:
    """Attention of (1, block, heads, d) over (1, keys, 2, kv_heads, d); queries of one group share
    their keys, as rows of one product."""
    kv_heads, size = shape.num_kv_heads, shape.head_dim
    turned = make.op("Transpose", query, perm=(0, 2, 1, 3))
    grouped = make.op("Reshape", turned, make.ints(1, kv_heads, -1, size), allowzero=1)
    keys = make.op("Gather", both, _index(make, 0), axis=2)
    scores = make.op("MatMul", grouped, make.op("Transpose", keys, perm=(0, 2, 3, 1)))
    # Rows by head while the mask is added; 0 keeps the number of keys.
    scores = make.op("Reshape", make.cast(scores, _FLOAT), make.ints(1, shape.num_heads, -1, 0))
    shares = make.op("Softmax", make.op("Add", scores, bias), axis=-1)
    shares = make.op("Reshape", make.cast(shares, _HALF), make.ints(1, kv_heads, -1, 0))
    values = make.op("Gather", both, _index(make, 1), axis=2)
    seen = make.op("MatMul", shares, make.op("Transpose", values, perm=(0, 2, 1, 3)))
    split = make.op("Reshape", seen, make.ints(1, shape.num_heads, -1, size), allowzero=1)
    joined = make.op("Transpose", split, perm=(0, 2, 1, 3))
    return make.op("Reshape", joined, make.ints(1, -1, shape.num_heads * size), allowzero=1)


def _spec(shape: TransformerShape, rows: int, context: int, precision: str) -> GraphSpec:
    cache = (1, shape.num_layers, 2, shape.num_kv_heads, shape.head_dim)

    def tensor(name: str, dtype: str, sizes: Sequence[int], role: str) -> TensorSpec:
        return TensorSpec(name=name, dtype=dtype, shape=tuple(sizes), role=role)

    return GraphSpec(
        name="denoise",
        file=FILE,
        dims={"batch": 1, "rows": rows, "context": context},
        purpose="denoise",
        block=rows,
        precision=precision,
        inputs=(
            tensor("ids", "int32", (1, rows), "canvas"),
            tensor("start", "int32", (1,), "start"),
            tensor("kv", "float16", (context, *cache), "kv"),
            tensor("split", "int32", (1,), "split"),
        ),
        outputs=(
            tensor("logits", "float32", (1, rows, shape.vocab_size), "logits"),
            tensor("kv_new", "float16", (rows, *cache), "kv_new"),
        ),
    )


def block_manifest(
    shape: TransformerShape, sizes: Sequence[tuple[int, int]], *, precision: str, target: str
) -> Manifest:
    """Describes a bundle of that graph at (rows, context) sizes, as far as a forecast reads it."""
    model: Mapping[str, Any] = {"dim": shape.dim, "num_layers": shape.num_layers}
    return Manifest(
        family="mdlm",
        model=model,
        vocab_size=shape.vocab_size,
        mask_token_id=1,
        eos_token_id=0,
        pad_token_id=None,
        logit_shift=0,
        max_position=shape.positions,
        block_sizes=tuple(sorted({block for block, _ in sizes})),
        noise_schedule={},
        precision=precision,
        target=target,
        graphs=tuple(_spec(shape, block, context, precision) for block, context in sizes),
        decoding={},
        provenance={},
    )
