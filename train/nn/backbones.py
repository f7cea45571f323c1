"""From the `model` part of config.json to a denoiser. Knows no objective.

All backbones are one Transformer; `config.BACKBONES` says what each sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ...runtime.errors import ConfigError
from .config import ModelConfig
from .transformer import Transformer


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
    return Transformer(config)
