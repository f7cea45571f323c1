"""Checkpoints of the diffusion transformer DDiT (SEDD, MDLM, BD3-LM, Duo): their names and ours.

Every layer there is scaled, shifted and gated by a condition made of the noise level. Models that
do not see time have it at 0 always, so that the condition is one vector: it is then multiplied into
the weights here, and a plain transformer with norms of mean and variance is left.

| ours | DDiT's, behind `backbone.` or nothing |
|---|---|
| embed, head | vocab_embed.embedding, output_layer.linear |
| trunk.norm | output_layer.norm_final, folded with output_layer.adaLN_modulation |
| trunk.layers.N.attention_norm, mlp_norm | blocks.N.norm1, norm2, folded with adaLN_modulation |
| attention.qkv, attention.out | attn_qkv, attn_out (its rows times the gate) |
| mlp.up, mlp.down | mlp.0, mlp.2 (its rows and bias times the gate) |

Models that see noise keep their modulations, whose parts are in another order here: (shift, scale,
gate) there, (scale, shift, gate) here, for attention, then for the MLP.

Source: the published code of SEDD (arXiv 2310.16834) and MDLM (arXiv 2406.07524).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from ...runtime.errors import CheckpointError
from ..nn.config import NORM_EPS, ModelConfig

SIZES = {
    "vocab_size": "vocab_size",
    "dim": "hidden_dim",
    "num_layers": "n_blocks",
    "num_heads": "n_heads",
    "context": "model_length",
}
"""Fields of ModelConfig, and the keys of config.json."""
NUM_WAVES = 128
"""Frequencies of the sinusoids of the noise level."""
IGNORED = (
    "rotary_emb.inv_freq",
    "sampling_eps_min",
    "sampling_eps_max",
    "static_attention_mask",
    "encoder_static_attention_mask",
    "mask_diff_mask",
)
"""Ends of the names of tensors that follow from others."""


def read_ddit_shape(config: Mapping[str, Any], where: str, *, sees_noise: bool) -> ModelConfig:
    """Makes our shape of a config.json; raises CheckpointError for what is not supported.

    Args:
        sees_noise: Whether its architecture is one whose layers see the noise level.
    """
    missing = [name for name in SIZES.values() if type(config.get(name)) is not int]
    if missing:
        raise CheckpointError(f"{where}: {missing[0]} is missing; copy config.json again")
    if config.get("time_conditioning") and not sees_noise:
        raise CheckpointError(
            f"{where}: its layers see time (time_conditioning), which is not supported; choose a "
            "checkpoint that was trained without"
        )
    if config.get("scale_by_sigma") is False:
        raise CheckpointError(
            f"{where}: its scores are not scaled by the noise (scale_by_sigma), which is not "
            "supported; choose a checkpoint whose are"
        )
    found = {ours: config[theirs] for ours, theirs in SIZES.items()}
    return ModelConfig(
        **found,
        num_kv_heads=found["num_heads"],
        head_dim=found["dim"] // max(found["num_heads"], 1),
        hidden_dim=4 * found["dim"],
        backbone="ddit",
        layer_norm=True,
        plain_mlp=True,
        head_bias=True,
        norm_eps=NORM_EPS,
    )


def is_ddit(names: Mapping[str, Any]) -> bool:
    """Whether tensors of these names are DDiT's."""
    return any(name.removeprefix("backbone.") == "vocab_embed.embedding" for name in names)


def flat_config(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Gives the config.json of a SEDD, which is nested, as the others are; None for another's."""
    model, graph, noise = (config.get(name) for name in ("model", "graph", "noise"))
    if not all(isinstance(part, Mapping) for part in (model, graph, noise)):
        return None
    assert isinstance(model, Mapping)
    assert isinstance(graph, Mapping)
    assert isinstance(noise, Mapping)
    tokens, absorbs = config.get("tokens"), graph.get("type") == "absorb"
    return {
        "architectures": ["SEDD"],
        "hidden_dim": model.get("hidden_size"),
        "n_blocks": model.get("n_blocks"),
        "n_heads": model.get("n_heads"),
        "model_length": model.get("length"),
        "vocab_size": tokens + absorbs if type(tokens) is int else None,
        "condition_dim": model.get("cond_dim"),
        "graph": graph.get("type"),
        "noise_schedule": noise.get("type"),
        "scale_by_sigma": model.get("scale_by_sigma"),
    }


def read_ddit_tensors(
    tensors: Mapping[str, torch.Tensor], shape: ModelConfig, where: str, *, folded: bool
) -> dict[str, torch.Tensor]:
    """Makes our tensors, float32; raises CheckpointError.

    Args:
        folded: Whether modulations at noise level 0 are multiplied into the weights.
    """
    source = _Source(tensors, where)
    if not folded:
        return _conditioned(source, shape)
    dim, condition = shape.dim, source.condition()
    own = {
        "embed.weight": source.take("vocab_embed.embedding", (shape.vocab_size, dim)),
        "head.weight": source.take("output_layer.linear.weight", (shape.vocab_size, dim)),
        "head.bias": source.take("output_layer.linear.bias", (shape.vocab_size,)),
    }
    shift, scale = source.modulation("output_layer", condition, 2, dim)
    weight = source.take("output_layer.norm_final.weight", (dim,))
    own |= {"trunk.norm.weight": weight * (1 + scale), "trunk.norm.bias": shift}
    for index in range(shape.num_layers):
        block, ours = f"blocks.{index}", f"trunk.layers.{index}"
        parts = source.modulation(block, condition, 6, dim)
        for name, norm, (shift, scale) in (
            ("attention_norm", "norm1", parts[0:2]),
            ("mlp_norm", "norm2", parts[3:5]),
        ):
            weight = source.take(f"{block}.{norm}.weight", (dim,))
            own[f"{ours}.{name}.weight"] = weight * (1 + scale)
            own[f"{ours}.{name}.bias"] = shift
        wide = shape.hidden_dim
        own |= {
            f"{ours}.attention.qkv.weight": source.take(f"{block}.attn_qkv.weight", (3 * dim, dim)),
            f"{ours}.attention.out.weight": parts[2][:, None]
            * source.take(f"{block}.attn_out.weight", (dim, dim)),
            f"{ours}.mlp.up.weight": source.take(f"{block}.mlp.0.weight", (wide, dim)),
            f"{ours}.mlp.up.bias": source.take(f"{block}.mlp.0.bias", (wide,)),
            f"{ours}.mlp.down.weight": parts[5][:, None]
            * source.take(f"{block}.mlp.2.weight", (dim, wide)),
            f"{ours}.mlp.down.bias": parts[5] * source.take(f"{block}.mlp.2.bias", (dim,)),
        }
    source.check_rest()
    return own


def _conditioned(source: _Source, shape: ModelConfig) -> dict[str, torch.Tensor]:
    """The tensors of a model that sees noise."""
    dim, wide = shape.dim, shape.hidden_dim
    width = source.condition_dim
    own = {
        "embed.weight": source.take("vocab_embed.embedding", (shape.vocab_size, dim)),
        "head.weight": source.take("output_layer.linear.weight", (shape.vocab_size, dim)),
        "head.bias": source.take("output_layer.linear.bias", (shape.vocab_size,)),
        "sigma.hidden.weight": source.take("sigma_map.mlp.0.weight", (width, 2 * NUM_WAVES)),
        "sigma.hidden.bias": source.take("sigma_map.mlp.0.bias", (width,)),
        "sigma.out.weight": source.take("sigma_map.mlp.2.weight", (width, width)),
        "sigma.out.bias": source.take("sigma_map.mlp.2.bias", (width,)),
    }

    def norm(ours: str, theirs: str) -> None:
        own[f"{ours}.weight"] = source.take(f"{theirs}.weight", (dim,))
        own[f"{ours}.bias"] = torch.zeros(dim)

    def modulation(ours: str, theirs: str, order: tuple[int, ...]) -> None:
        for kind, size in (("weight", (len(order) * dim, width)), ("bias", (len(order) * dim,))):
            parts = source.take(f"{theirs}.adaLN_modulation.{kind}", size).chunk(len(order))
            own[f"{ours}.modulation.{kind}"] = torch.cat([parts[place] for place in order])

    norm("trunk.norm", "output_layer.norm_final")
    modulation("trunk", "output_layer", (1, 0))
    for index in range(shape.num_layers):
        block, ours = f"blocks.{index}", f"trunk.layers.{index}"
        norm(f"{ours}.attention_norm", f"{block}.norm1")
        norm(f"{ours}.mlp_norm", f"{block}.norm2")
        modulation(ours, block, (1, 0, 2, 4, 3, 5))
        for name, theirs, size in (
            ("attention.qkv.weight", "attn_qkv.weight", (3 * dim, dim)),
            ("attention.out.weight", "attn_out.weight", (dim, dim)),
            ("mlp.up.weight", "mlp.0.weight", (wide, dim)),
            ("mlp.up.bias", "mlp.0.bias", (wide,)),
            ("mlp.down.weight", "mlp.2.weight", (dim, wide)),
            ("mlp.down.bias", "mlp.2.bias", (dim,)),
        ):
            own[f"{ours}.{name}"] = source.take(f"{block}.{theirs}", size)
    source.check_rest()
    return own


class _Source:
    """A checkpoint's tensors by the names behind their prefix, each taken once."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], where: str) -> None:
        self._where = where
        self._left = {name.removeprefix("backbone."): item for name, item in tensors.items()}

    def take(self, name: str, size: tuple[int, ...]) -> torch.Tensor:
        """A tensor of this size in float32; raises CheckpointError."""
        found = self._left.pop(name, None)
        if found is None:
            raise CheckpointError(f"{self._where}: tensor {name} is missing; copy it again")
        if tuple(found.shape) != size:
            raise CheckpointError(
                f"{self._where}: tensor {name} is {tuple(found.shape)}, config.json makes it {size}"
            )
        return found.float()

    @property
    def condition_dim(self) -> int:
        """Width of the condition."""
        return len(self._left.get("sigma_map.mlp.0.bias", ()))

    def condition(self) -> torch.Tensor:
        """The condition at noise level 0, behind its SiLU: (cond_dim,)."""
        waves = torch.cat([torch.ones(NUM_WAVES), torch.zeros(NUM_WAVES)])
        width = self.condition_dim
        hidden = self.take("sigma_map.mlp.0.weight", (width, 2 * NUM_WAVES)) @ waves
        hidden = F.silu(hidden + self.take("sigma_map.mlp.0.bias", (width,)))
        out = self.take("sigma_map.mlp.2.weight", (width, width)) @ hidden
        return F.silu(out + self.take("sigma_map.mlp.2.bias", (width,)))

    def modulation(
        self, layer: str, condition: torch.Tensor, count: int, dim: int
    ) -> tuple[torch.Tensor, ...]:
        """Shifts, scales and gates of a layer: `count` of (dim,)."""
        name = f"{layer}.adaLN_modulation"
        weight = self.take(f"{name}.weight", (count * dim, len(condition)))
        return (weight @ condition + self.take(f"{name}.bias", (count * dim,))).chunk(count)

    def check_rest(self) -> None:
        """Raises CheckpointError for a tensor that is none of such a model's."""
        rest = sorted(name for name in self._left if not name.endswith(IGNORED))
        if rest:
            raise CheckpointError(
                f"{self._where}: tensor {rest[0]} is not of a DDiT with the sizes in config.json; "
                "is it a checkpoint of another model?"
            )
