"""Folders in the layout of the package `mamba_ssm`: layers of Mamba-2 to start from, or to hand on.

| file | ours |
|---|---|
| backbone.layers.N.norm.weight | layers.N.norm.weight |
| backbone.layers.N.mixer.* | layers.N.mixer.* (the names within a mixer are the same) |
| backbone.layers.N.mixer_reverse.* | layers.N.mixer_reverse.*; without it a copy of mixer.* |
| backbone.norm_f.weight | norm_f.weight |

Embedding and head are not read: latents have a width of their own. How layers see the time is not
in the file, and keeps its fresh weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from ...runtime.errors import CheckpointError
from ..files import make_folder, write_text
from ..nn.mamba2 import KERNEL, Mamba2Config, Mamba2Trunk
from .tensor_files import WEIGHTS, read_weights

PREFIX = "backbone."
FORWARD, REVERSE = ".mixer.", ".mixer_reverse."
DEFAULTS = {"d_state": 128, "expand": 2, "headdim": 64, "ngroups": 1, "d_conv": KERNEL}
"""Of `mamba_ssm.Mamba2`, for what `ssm_cfg` leaves out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrunkStart:
    """Layers to start from; the other weights of a model stay as they were drawn."""

    path: Path
    config: Mamba2Config
    weights: Mapping[str, torch.Tensor]
    """Under the trunk's own names."""

    def options(self, given: Mapping[str, Any], family: str) -> dict[str, Any]:
        """The options of a family: what was given, and the shape of the layers."""
        del family
        names = ("dim", "num_layers", "num_heads", "state_size", "expand")
        own = {name: getattr(self.config, name) for name in names}
        return {"backbone": "mamba2", **own, **given}

    def load(self, module: nn.Module, tokenizer: Tokenizer | None = None) -> None:
        """Copies the layers into a model's trunk; CheckpointError names a tensor that is other."""
        del tokenizer
        assert isinstance(module.trunk, Mamba2Trunk)
        load_layers(module.trunk, self.weights, self.path)

    def companions(self, tokenizer: Tokenizer) -> dict[str, str]:
        """Nothing goes beside the tokenizer."""
        del tokenizer
        return {}


def is_mamba_ssm(config: Mapping[str, Any]) -> bool:
    """Tells whether a config.json is in the layout of `mamba_ssm`."""
    return "d_model" in config and "ssm_cfg" in config


def read_mamba_ssm(folder: Path, config: Mapping[str, Any]) -> TrunkStart:
    """Reads a folder whose config.json is `config`; raises CheckpointError."""
    if not isinstance(config["ssm_cfg"], Mapping):
        raise CheckpointError(f"{folder}: ssm_cfg of config.json is no object; download it again")
    inner = {**DEFAULTS, **config["ssm_cfg"]}
    if inner.get("layer", "Mamba1") != "Mamba2":
        raise CheckpointError(
            f"{folder}: its layers are {inner.get('layer', 'Mamba1')}, not Mamba2"
        )
    if inner["ngroups"] != 1 or inner["d_conv"] != KERNEL:
        raise CheckpointError(
            f"{folder}: ngroups {inner['ngroups']} and d_conv {inner['d_conv']}; read are 1 and "
            f"{KERNEL}"
        )
    sizes = {"n_layer": config.get("n_layer"), "d_model": config["d_model"], **inner}
    for name in ("n_layer", "d_model", "expand", "headdim"):
        if type(sizes[name]) is not int or sizes[name] < 1:
            raise CheckpointError(
                f"{folder}: {name} of config.json must be a positive integer, not {sizes[name]!r}"
            )
    channels = inner["expand"] * config["d_model"]
    shape = Mamba2Config(
        dim=config["d_model"],
        num_layers=config["n_layer"],
        num_heads=channels // inner["headdim"],
        state_size=inner["d_state"],
        expand=inner["expand"],
    )
    stored = read_weights(folder)
    weights = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in stored.items()
        if name.startswith((f"{PREFIX}layers.", f"{PREFIX}norm_f."))
    }
    for name in [name for name in weights if FORWARD in name]:
        weights.setdefault(name.replace(FORWARD, REVERSE), weights[name])
    return TrunkStart(path=folder, config=shape, weights=weights)


def load_layers(trunk: Mamba2Trunk, weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Copies layers into a trunk.

    Raises:
        CheckpointError: A tensor is missing, unknown or of another shape.
    """
    wanted = {
        name: value for name, value in trunk.state_dict().items() if ".modulation." not in name
    }
    for name, value in wanted.items():
        if name not in weights:
            raise CheckpointError(f"{path}: the tensor {PREFIX}{name} is missing")
        if weights[name].shape != value.shape:
            raise CheckpointError(
                f"{path}: {PREFIX}{name} is {tuple(weights[name].shape)}, the model needs "
                f"{tuple(value.shape)}; give the same --dim, --heads, --state-size and --expand"
            )
    unknown = sorted(set(weights) - set(wanted))
    if unknown:
        raise CheckpointError(
            f"{path}: the tensor {PREFIX}{unknown[0]} is none of a model with "
            f"{len(trunk.layers)} layers; another shape?"
        )
    trunk.load_state_dict({name: weights[name] for name in wanted}, strict=False)


def write_mamba_ssm(
    trunk: Mamba2Trunk, config: Mamba2Config, embedding: torch.Tensor, folder: Path
) -> None:
    """Writes a trunk and an embedding (V, dim) as a folder in that layout.

    Its layers read forwards there: what reads backwards is beside them, and `mamba_ssm` ignores it
    (`strict=False`).
    """
    from safetensors.torch import save_file

    make_folder(folder)
    tensors = {
        f"{PREFIX}{name}": value.detach().clone().contiguous()
        for name, value in trunk.state_dict().items()
        if ".modulation." not in name
    }
    tensors[f"{PREFIX}embedding.weight"] = embedding.detach().clone()
    tensors["lm_head.weight"] = embedding.detach().clone()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    described = {
        "d_model": config.dim,
        "d_intermediate": 0,
        "n_layer": config.num_layers,
        "vocab_size": len(embedding),
        "ssm_cfg": {
            "layer": "Mamba2",
            "d_state": config.state_size,
            "expand": config.expand,
            "headdim": config.inner // config.num_heads,
        },
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 1,
        "tie_embeddings": True,
    }
    write_text(folder / "config.json", json.dumps(described, indent=2) + "\n")
