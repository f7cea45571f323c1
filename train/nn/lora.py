"""LoRA: training a few small matrices beside frozen ones (`--lora RANK`), by way of peft.

Each linear layer of the trunk gets two thin matrices; of the embedding only the mask's row is
trained, which no pretrained model knows. What is written to disk is merged, so that a checkpoint
looks as if all of it had been trained; states for `--resume` keep the parts.

Source: LoRA (arXiv 2106.09685).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from ...runtime.errors import ConfigError

TARGETS = ("attention.qkv", "attention.out", "mlp.gate_up", "mlp.down")
"""Linear layers that get adapters, by the end of their names."""
_BASE = ".base_layer"
_ROWS = ".trainable_tokens_delta.default"
_IN, _OUT = ".lora_A.default.weight", ".lora_B.default.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """The adapters of one model."""

    rank: int
    """Inner width of each pair of matrices."""
    scale: float
    """Their product is added this many times."""
    mask_token_id: int | None
    """Row of the embedding that is trained; None: none is."""
    tied: bool
    """Whether the head is the embedding."""

    def add(self, module: nn.Module, *, narrow: bool) -> None:
        """Puts adapters into a model, in place, and freezes everything else.

        Args:
            narrow: Holds the frozen matrices in bfloat16, in which they are multiplied anyway.

        Raises:
            ConfigError: peft is not installed.
        """
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise ConfigError(
                f"--lora needs the package peft ({error}): pip install 'dlm-edge[lora]', or train "
                "all weights without it"
            ) from error
        rows = None if self.mask_token_id is None else {"embed": [self.mask_token_id]}
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.scale * self.rank,  # type: ignore[arg-type]  # any number does
            target_modules=list(TARGETS),
            trainable_token_indices=rows,
        )
        inject_adapter_in_model(config, module)
        if narrow:
            for name, parameter in module.named_parameters():
                if _BASE in name and parameter.ndim == 2 and not name.startswith("embed"):
                    parameter.data = parameter.data.to(torch.bfloat16)

    def merged(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Makes an ordinary model's state, float32, of one with adapters."""
        plain: dict[str, torch.Tensor] = {}
        for name, tensor in state.items():
            if name.endswith((_IN, _OUT, _ROWS)):
                continue
            weight = tensor.float()
            before, found, after = name.partition(_BASE)
            if before + _IN in state and after == ".weight":
                weight = weight + self.scale * (state[before + _OUT] @ state[before + _IN]).float()
            if before + _ROWS in state:
                weight = weight.clone()
                weight[self.mask_token_id] = state[before + _ROWS][0].float()
            plain[(before.removesuffix(".token_adapter") + after) if found else name] = weight
        if self.tied:
            plain["head.weight"] = plain["embed.weight"]
        return plain
