"""Public checkpoints in Hugging Face's format: their config.json and tensors, and ours.

Knows shapes and values, no files; names are in `architectures.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from ...runtime.errors import CheckpointError, ConfigError, brief
from ..nn.config import BACKBONES, ROPE_THETA, ModelConfig, RopeScaling
from .architectures import (
    ARCHITECTURES,
    CAUSAL,
    DIFFUSION,
    EMBED,
    HEAD,
    OF_LAYER,
    WHOLE,
    Architecture,
)
from .ddit import read_ddit_shape

_SCALING = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "context": "original_max_position_embeddings",
}
"""Fields of RopeScaling, and Hugging Face's keys."""


def is_hugging_face(names: Iterable[str]) -> bool:
    """Whether tensors of these names are Hugging Face's."""
    return any(name.startswith("model.") for name in names)


def read_shape(config: Mapping[str, Any], where: str) -> ModelConfig:
    """Makes our shape of Hugging Face's config.json.

    Args:
        where: What messages call it.

    Raises:
        CheckpointError: It is of an architecture, rotary scaling or quantisation that is not
            supported, lacks a size, or has a value that no model of that kind can have.
    """
    try:
        return _shape(config, where)
    except (ConfigError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise CheckpointError(
            f"{where}: config.json describes no model ({brief(error, 200)}); copy it again"
        ) from error


def _shape(config: Mapping[str, Any], where: str) -> ModelConfig:
    known = find_architecture(config, where)
    if known.backbone == "ddit":
        denoising = known.denoising
        sees_noise = denoising is not None and denoising.sees_noise
        return read_ddit_shape(config, where, sees_noise=sees_noise)
    rope = _rope(config, where)
    sizes = {
        "vocab_size": "vocab_size",
        "dim": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "hidden_dim": "intermediate_size",
    }
    missing = [name for name in sizes.values() if not isinstance(config.get(name), int)]
    if missing:
        raise CheckpointError(f"{where}: {missing[0]} is missing; copy config.json again")
    found: dict[str, Any] = {ours: int(config[theirs]) for ours, theirs in sizes.items()}
    heads = found["num_heads"]
    switches = BACKBONES[known.backbone]
    return ModelConfig(
        **found,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or known.head_dim or found["dim"] // max(heads, 1),
        context=config.get("max_position_embeddings", known.context),
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        causal=known.denoising is None,
        backbone=known.backbone,
        qkv_bias=switches.get("qkv_bias", False),
        qk_norm=switches.get("qk_norm", False),
        **rope,
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
    )


def find_architecture(config: Mapping[str, Any], where: str) -> Architecture:
    """The architecture of a config.json; raises CheckpointError on what would compute otherwise."""
    named = config.get("architectures") or []
    named = [named] if isinstance(named, str) else named
    known = [item for item in ARCHITECTURES if item.name in named]
    if not named:
        known = [item for item in ARCHITECTURES if item.model_type == config.get("model_type")]
    if len(known) > 1:  # a mask tells a diffusion model from the causal one of the same name
        has_mask = isinstance(config.get("mask_token_id"), int)
        known = [item for item in known if (item.denoising is not None) == has_mask]
    if not known:
        causal, diffusion = (
            ", ".join(item.name for item in items) for items in (CAUSAL.values(), DIFFUSION)
        )
        remote = "; the code in its repository is not run" if config.get("auto_map") else ""
        raise CheckpointError(
            f"{where}: architecture {named[0] if named else config.get('model_type')!r} is not "
            f"supported{remote}; choose a diffusion model ({diffusion}) or a causal one, which "
            f"families ar and tidar take ({causal})"
        )
    windowed = "sliding_attention" in (config.get("layer_types") or ())
    if config.get("use_sliding_window") or windowed:
        raise CheckpointError(
            f"{where}: sliding-window attention is not supported; choose a checkpoint with "
            "use_sliding_window false"
        )
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown")
        raise CheckpointError(
            f"{where}: its weights are quantised ({method}); choose the checkpoint in float, and "
            "quantise at export"
        )
    others = [name for name in ("attention_bias", "mlp_bias") if config.get(name)]
    if config.get("hidden_act", "silu") != "silu":
        others.append(config["hidden_act"])
    if others:
        raise CheckpointError(
            f"{where}: {others[0]!r} is not supported by backbone {known[0].backbone}; choose a "
            "checkpoint without it"
        )
    return known[0]


def _rope(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Base and scaling of the rotary positions, as fields of ModelConfig.

    New files hold both in rope_parameters, older ones the scaling in rope_scaling, where some have
    the base, too.
    """
    places = [config.get(key) or {} for key in ("rope_scaling", "rope_parameters")]
    bases = [place.get("rope_theta") for place in (*places, config)]
    base = float(next(filter(None, bases), ROPE_THETA))
    found = next(filter(None, places), {})
    share = found.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if share != 1.0:
        raise CheckpointError(
            f"{where}: partial_rotary_factor {share} is not supported; choose a checkpoint that "
            "rotates whole heads"
        )
    kind = found.get("rope_type") or found.get("type") or "default"
    if kind == "default":
        return {"rope_theta": base}
    if kind != "llama3":
        raise CheckpointError(
            f"{where}: rotary scaling {kind!r} is not supported; set rope_type to default in "
            "config.json to use the positions that the model was trained on without it"
        )
    missing = [theirs for theirs in _SCALING.values() if theirs not in found]
    if missing:
        raise CheckpointError(
            f"{where}: rotary scaling of Llama 3 lacks {missing[0]}; copy config.json again"
        )
    scaling = {ours: found[theirs] for ours, theirs in _SCALING.items()}
    return {"rope_theta": base, "rope_scaling": RopeScaling(**scaling)}


def write_shape(shape: ModelConfig) -> dict[str, Any]:
    """Hugging Face's keys of config.json for one of our shapes, as transformers reads them."""
    scaling = {}
    if shape.rope_scaling is not None:
        values = asdict(shape.rope_scaling)
        fields = {theirs: values[ours] for ours, theirs in _SCALING.items()}
        scaling = {"rope_scaling": {"rope_type": "llama3", **fields}}
    return {
        "architectures": [CAUSAL[shape.backbone].name],
        "model_type": shape.backbone,
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.dim,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.hidden_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        **scaling,
        "tie_word_embeddings": shape.tie_embeddings,
        "attention_bias": False,
        "dtype": "float32",
    }


def _parts(shape: ModelConfig) -> dict[str, tuple[tuple[str, tuple[int, ...]], ...]]:
    """Each of our tensors, and the names and shapes of Hugging Face's that are its rows."""
    width, kv_width = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    rows = {"q": width, "k": kv_width, "v": kv_width}
    sizes: dict[str, tuple[int, ...]] = {
        **{f"self_attn.{name}_proj.weight": (size, shape.dim) for name, size in rows.items()},
        **{f"self_attn.{name}_proj.bias": (size,) for name, size in rows.items()},
        "self_attn.q_norm.weight": (shape.head_dim,),
        "self_attn.k_norm.weight": (shape.head_dim,),
        "self_attn.o_proj.weight": (shape.dim, width),
        "mlp.gate_proj.weight": (shape.hidden_dim, shape.dim),
        "mlp.up_proj.weight": (shape.hidden_dim, shape.dim),
        "mlp.down_proj.weight": (shape.dim, shape.hidden_dim),
        "input_layernorm.weight": (shape.dim,),
        "post_attention_layernorm.weight": (shape.dim,),
    }
    absent = set() if shape.qkv_bias else {"attention.qkv.bias"}
    if not shape.qk_norm:
        absent |= {"attention.query_norm.weight", "attention.key_norm.weight"}
    table = (shape.vocab_size, shape.dim)
    found = {
        "embed.weight": ((EMBED, table),),
        "trunk.norm.weight": ((WHOLE["trunk.norm.weight"], (shape.dim,)),),
    }
    for index in range(shape.num_layers):
        for ours, theirs in OF_LAYER.items():
            if ours not in absent:
                parts = ((f"model.layers.{index}.{name}", sizes[name]) for name in theirs)
                found[f"trunk.layers.{index}.{ours}"] = tuple(parts)
    if not shape.tie_embeddings:
        found["head.weight"] = ((HEAD, table),)
    return found


def read_tensors(
    tensors: Mapping[str, torch.Tensor], shape: ModelConfig, where: str
) -> dict[str, torch.Tensor]:
    """Makes our tensors, float32, of Hugging Face's; raises CheckpointError."""
    parts = _parts(shape)
    wanted = {name: size for each in parts.values() for name, size in each}
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise CheckpointError(f"{where}: {_listed('tensor', missing)} missing; copy it again")
    # Old files hold the rotary rates as well, and some tied ones the head: both follow from others.
    derived = {HEAD} if shape.tie_embeddings else set()
    unknown = [
        name
        for name in tensors
        if name not in wanted and name not in derived and not name.endswith("rotary_emb.inv_freq")
    ]
    if unknown:
        raise CheckpointError(
            f"{where}: {_listed('tensor', sorted(unknown))} not of a {shape.backbone} model with "
            "the sizes in config.json; is it a checkpoint of another model?"
        )
    for name, size in wanted.items():
        _check_size(name, tuple(tensors[name].shape), size, where)
        if not tensors[name].is_floating_point():
            kind = str(tensors[name].dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{where}: tensor {name} is of {kind}, no weights in floating point; choose the "
                "checkpoint that was not quantised"
            )
    _check_tie(tensors, shape, where)
    own = {}
    for ours, each in parts.items():
        rows = [tensors[name].float() for name, _ in each]
        own[ours] = rows[0] if len(rows) == 1 else torch.cat(rows)
    if shape.tie_embeddings:
        own["head.weight"] = own["embed.weight"]
    return own


def _check_tie(tensors: Mapping[str, torch.Tensor], shape: ModelConfig, where: str) -> None:
    """Raises CheckpointError for a head beside the embedding that it is said to be, but is not."""
    if not shape.tie_embeddings or HEAD not in tensors:
        return
    if not torch.equal(tensors[HEAD], tensors[EMBED]):
        raise CheckpointError(
            f"{where}: {HEAD} is another matrix than {EMBED}, and config.json ties the two; set "
            "tie_word_embeddings to false there to use both"
        )


def _check_size(name: str, found: tuple[int, ...], wanted: tuple[int, ...], where: str) -> None:
    if found == wanted:
        return
    if name in (EMBED, HEAD) and found[1:] == wanted[1:]:
        raise CheckpointError(
            f"{where}: {name} has {found[0]} rows, and vocab_size of config.json is {wanted[0]}; "
            "the two belong to different checkpoints: copy both from one"
        )
    raise CheckpointError(f"{where}: tensor {name} is {found}, config.json makes it {wanted}")


def _listed(word: str, names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{word}{'s' if len(names) > 1 else ''} {shown} {'are' if len(names) > 1 else 'is'}"


def write_tensors(
    tensors: Mapping[str, torch.Tensor], shape: ModelConfig
) -> dict[str, torch.Tensor]:
    """Makes Hugging Face's tensors of ours; slices share memory with what they are cut from."""
    found = {}
    for ours, each in _parts(shape).items():
        sizes = [size[0] for _, size in each]
        for (name, _), part in zip(each, tensors[ours].split(sizes), strict=True):
            found[name] = part
    return found
