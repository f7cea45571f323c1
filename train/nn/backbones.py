"""The table of backbones: from a ModelConfig to a denoiser. Knows no objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ...runtime.errors import ConfigError
from .config import ModelConfig
from .transformer import Transformer

BACKBONES: Mapping[str, Callable[[ModelConfig], nn.Module]] = {"native": Transformer}


def make_backbone(values: Mapping[str, Any]) -> nn.Module:
    """Builds the denoiser from the `model` part of config.json; raises ConfigError."""
    config = ModelConfig.from_json(values)
    build = BACKBONES.get(config.backbone)
    if build is None:
        raise ConfigError(
            f"backbone {config.backbone!r} is unknown; choose one of {', '.join(BACKBONES)}"
        )
    return build(config)
