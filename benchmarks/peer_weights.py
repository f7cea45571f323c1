"""Gives the PyTorch peers their model: from a checkpoint folder, or from a bundle's own graph.

The second way lets a benchmark run where there is a bundle and no checkpoint, and gives all
contestants the same numbers also where the bundle stores them in half precision or as int8; of the
latter, PyTorch computes in float32 with the rounded weights. The exporter
keeps the names of norms; it transposes and renames the matrices, which are therefore found by the
order in which the graph multiplies by them, and checked by their shapes and, in `check_same`, by
the logits they give. (Norms that are equal to each other, as before training, lose their names.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..runtime.bundle.bundle import Bundle, open_bundle
from ..runtime.engines import open_engines
from ..runtime.errors import BundleError, CheckpointError, ConfigError
from ..train.checkpoints.checkpoint import load_weights
from ..train.checkpoints.convert import open_any
from ..train.families import FAMILIES
from ..train.nn.transformer import Transformer

LAYER_MATRICES = ("attention.qkv", "attention.out", "mlp.gate_up", "mlp.down")
"""In the order in which a layer multiplies by them."""
MAX_LOGIT_ERROR = 2e-2
MAX_INT8_ERROR = 1e-1
"""Where the bundle rounds activations in each run, which PyTorch does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerModel:
    """A denoiser in PyTorch and the ids it needs to decode."""

    model: Transformer
    """In evaluation mode, float32."""
    mask_token_id: int
    eos_token_id: int
    banned: tuple[int, ...]
    """Ids that are never sampled: mask, padding, and eos so that no text ends early."""
    block_sizes: tuple[int, ...]
    """Block sizes it was trained on."""
    context: int
    """Positions it was trained on."""


def _peer(model: torch.nn.Module, ids: dict[str, int | None], block_sizes: object) -> PeerModel:
    if not isinstance(model, Transformer) or model.time is not None:
        raise ConfigError("the PyTorch peers decode the native backbone without time conditioning")
    mask, eos = ids["mask_token_id"], ids["eos_token_id"]
    if mask is None or eos is None:
        raise ConfigError("the PyTorch peers decode masked models; give one of family mdlm")
    assert isinstance(block_sizes, list | tuple)
    return PeerModel(
        model=model.eval(),
        mask_token_id=mask,
        eos_token_id=eos,
        banned=tuple(sorted({mask, eos, ids["pad_token_id"]} - {None})),  # type: ignore[type-var]
        block_sizes=tuple(block_sizes),
        context=model.config.context,
    )


def from_checkpoint(path: Path) -> PeerModel:
    """Loads a checkpoint folder; raises CheckpointError or ConfigError."""
    checkpoint = open_any(path)
    config = checkpoint.config
    model = FAMILIES["mdlm"].make_model(config["model"])
    load_weights(model, checkpoint)
    return _peer(model, config, config["block_sizes"])


def from_bundle(path: Path) -> PeerModel:
    """Rebuilds the PyTorch model of an mdlm bundle; raises BundleError where that is not exact."""
    bundle = open_bundle(path)
    manifest = bundle.manifest
    if manifest.family != "mdlm":
        raise ConfigError(f"{path.name}: wanted family mdlm, found {manifest.family}")
    settings = {key: value for key, value in manifest.model.items() if key != "num_parameters"}
    model = FAMILIES["mdlm"].make_model(settings)
    assert isinstance(model, Transformer)
    state = _read_state(bundle, model)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise _foreign(bundle, " ".join(str(error).split())[:200]) from error
    ids = {
        name: getattr(manifest, name) for name in ("mask_token_id", "eos_token_id", "pad_token_id")
    }
    peer = _peer(model, ids, manifest.block_sizes)
    check_same(peer, bundle)
    return peer


def _foreign(bundle: Bundle, reason: str) -> BundleError:
    return BundleError(
        f"{bundle.path.name}: cannot rebuild the PyTorch model ({reason}); give --checkpoint"
    )


def _read_state(bundle: Bundle, model: Transformer) -> dict[str, torch.Tensor]:
    """Reads the weights out of the graph, under the names of the PyTorch model."""
    import onnx
    from onnx import numpy_helper

    file = bundle.manifest.graphs[0].file
    graph = onnx.load(str(bundle.member(file))).graph
    known = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    gathered = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    for name in [name for name in known if name.endswith(".int8")]:
        step = known[name.removesuffix("int8") + "scale"].astype(np.float32)
        known[name] = known[name] * (step[:, None] if name in gathered else step)
    matrices: list[np.ndarray] = []
    for node in graph.node:
        source = known.get(node.input[0]) if node.input else None
        if node.op_type == "Cast" and source is not None:
            known[node.output[0]] = source.astype(np.float32)
        elif node.op_type == "Transpose" and source is not None and source.ndim == 2:
            known[node.output[0]] = source.T
        elif node.op_type == "Gather" and source is not None and source.ndim == 2:
            known["model.embed.weight"] = source
        elif node.op_type in ("MatMul", "MatMulInteger"):
            matrix = known.get(node.input[1])
            if matrix is not None and matrix.ndim == 2:
                matrices.append(matrix)
    layers = range(model.config.num_layers)
    names = [f"trunk.layers.{i}.{matrix}.weight" for i in layers for matrix in LAYER_MATRICES]
    names.append("head.weight")
    if len(names) != len(matrices):
        raise _foreign(bundle, f"wanted {len(names)} matrix products, found {len(matrices)}")
    state = {name: matrix.T for name, matrix in zip(names, matrices, strict=True)}
    for name in model.state_dict():
        if name not in state and f"model.{name}" in known:
            state[name] = known[f"model.{name}"]
    return {name: torch.from_numpy(np.array(array, np.float32)) for name, array in state.items()}


def check_same(peer: PeerModel, bundle: Bundle) -> float:
    """Holds the peer's logits to the bundle's engine on one block; returns the largest error.

    Raises:
        CheckpointError: they differ, so that the two are not the same model.
    """
    spec = min(bundle.manifest.graphs, key=lambda spec: spec.rows)
    generator = np.random.default_rng(0)
    ids = generator.integers(0, bundle.manifest.vocab_size, spec.rows).astype(np.int32)
    ids[::2] = peer.mask_token_id
    engines = open_engines(bundle, "onnxruntime", 1)
    engine = engines.engine(spec)
    for role, value in (("canvas", ids), ("start", np.zeros(1, np.int32))):
        engine.inputs[spec.tensor(role).name][...] = value
    engine.run()
    ours = np.array(engine.outputs[spec.tensor("logits").name])[0]
    engines.close()
    with torch.inference_mode():
        canvas = torch.from_numpy(ids.astype(np.int64))[None]
        theirs = peer.model(canvas, torch.arange(spec.rows))[0].numpy()
    error = float(np.abs(ours - theirs).max() / max(1.0, float(np.abs(theirs).max())))
    if not error <= (MAX_INT8_ERROR if bundle.manifest.precision == "int8" else MAX_LOGIT_ERROR):
        raise CheckpointError(
            f"PyTorch's logits differ from the bundle's by {error:.2g} of their largest: the "
            "checkpoint is not the one that the bundle was exported from; give that one"
        )
    return error
