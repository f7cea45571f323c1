"""Specs and manifests of hand-made bundles."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dlm_edge.runtime.bundle.manifest import GraphSpec, Manifest, TensorSpec


def find_shape(specs: Sequence[GraphSpec], name: str, rows: int, context: int = 0) -> GraphSpec:
    """The one of `specs` with these sizes."""
    (found,) = (
        spec for spec in specs if (spec.name, spec.rows, spec.context) == (name, rows, context)
    )
    return found


def bare_spec(name: str, rows: int, context: int) -> GraphSpec:
    """A shape of which nobody reads the tensors."""
    return GraphSpec(
        name=name,
        file=f"graphs/{name}.onnx",
        dims={"batch": 1, "rows": rows, "context": context},
        purpose="denoise",
        block=rows,
        precision="fp32",
        inputs=(),
        outputs=(),
    )


def denoise_spec(
    rows: int,
    context: int,
    *,
    vocab: int,
    cache: tuple[int, ...],
    timed: bool = False,
    splits: bool = False,
) -> GraphSpec:
    """One shape; `cache` is what follows the context in the shape of `kv`."""
    time = TensorSpec(name="time", dtype="float32", shape=(1, rows), role="time")
    split = TensorSpec(name="split", dtype="int32", shape=(1,), role="split")
    return GraphSpec(
        name="denoise",
        file="graphs/denoise.onnx",
        dims={"batch": 1, "rows": rows, "context": context},
        purpose="denoise",
        block=rows,
        precision="fp32",
        inputs=(
            TensorSpec(name="ids", dtype="int32", shape=(1, rows), role="canvas"),
            TensorSpec(name="start", dtype="int32", shape=(1,), role="start"),
            TensorSpec(
                name="kv", dtype="float32", shape=(context, *cache), role="kv", lifetime="request"
            ),
            *((split,) if splits else ()),
            *((time,) if timed else ()),
        ),
        outputs=(
            TensorSpec(name="logits", dtype="float32", shape=(1, rows, vocab), role="logits"),
            TensorSpec(name="kv_new", dtype="float32", shape=(rows, *cache), role="kv_new"),
        ),
    )


def score_spec(block: int, vocab_size: int) -> GraphSpec:
    """One length of a graph of scores."""
    return GraphSpec(
        name="score",
        file="graphs/score.onnx",
        dims={"batch": 1, "rows": block},
        purpose="score",
        block=block,
        precision="fp32",
        inputs=(
            TensorSpec(name="ids", dtype="int32", shape=(1, block), role="canvas"),
            TensorSpec(name="sigma", dtype="float32", shape=(1,), role="sigma"),
        ),
        outputs=(
            TensorSpec(
                name="log_score", dtype="float32", shape=(1, block, vocab_size), role="logits"
            ),
        ),
    )


def plain_manifest(specs: Sequence[GraphSpec], **changes: Any) -> Manifest:
    """A masked model's: 0 ends a text, 1 is the mask; `changes` are fields."""
    manifest = Manifest(
        family="mdlm",
        model={},
        vocab_size=next(t.shape[-1] for s in specs for t in s.outputs if t.role == "logits"),
        mask_token_id=1,
        eos_token_id=0,
        pad_token_id=None,
        logit_shift=0,
        max_position=4096,
        block_sizes=tuple(sorted({spec.block for spec in specs if spec.block is not None})),
        noise_schedule={"name": "loglinear"},
        precision="fp32",
        target="cpu",
        graphs=tuple(specs),
        decoding={},
        provenance={},
    )
    return replace(manifest, **changes)
