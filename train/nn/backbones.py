"""The table of backbones: from a ModelConfig to a denoiser. Knows no objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ...runtime.errors import ConfigError
from .config import ModelConfig
from .transformer import Transformer

BACKBONES: Mapping[str, Callable[[ModelConfig], nn.Module]] = {"native": Transformer}


def make_backbone(values: Mapping[str, Any], *, causal: bool | None = None) -> nn.Module:
    """Builds the denoiser from the `model` part of config.json.

    Args:
        values: What `ModelConfig.to_json` gave.
        causal: What the family needs; None: either.

    Raises:
        ConfigError: A value is unknown or out of range, or the model is one for another family.
    """
    config = ModelConfig.from_json(values)
    if causal is not None and config.causal != causal:
        raise ConfigError(
            f"the model has causal {str(config.causal).lower()}, which is not this family's; "
            "name the family it was trained with"
        )
    build = BACKBONES.get(config.backbone)
    if build is None:
        raise ConfigError(
            f"backbone {config.backbone!r} is unknown; choose one of {', '.join(BACKBONES)}"
        )
    return build(config)
