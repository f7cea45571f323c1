"""Fully sharded training (`--strategy fsdp`): every process holds a part of every weight.

States on disk are always whole, so that a run may be resumed on another number of processes. The
functions here turn parts into wholes and back; on ordinary tensors they do nothing.

Source: PyTorch FSDP2 (`torch.distributed.fsdp.fully_shard`), which also runs on CPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor


def fsdp_strategy(num_processes: int) -> Any:
    """Returns Fabric's strategy that splits weights, gradients and optimiser state."""
    from lightning_fabric.strategies.model_parallel import ModelParallelStrategy

    return ModelParallelStrategy(
        parallelize_fn=_shard_layers,
        data_parallel_size=num_processes,
        tensor_parallel_size=1,
    )


def _shard_layers(module: nn.Module, device_mesh: Any) -> nn.Module:
    """Shards each layer on its own, so that only one is whole at a time, then the rest."""
    from torch.distributed.fsdp import fully_shard

    mesh = device_mesh["data_parallel"]
    for stack in [m for m in module.modules() if isinstance(m, nn.ModuleList)]:
        for layer in stack:
            fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


def whole(value: Any) -> Any:
    """Replaces every sharded tensor in nested dicts and lists by the whole one.

    All processes must call it together.
    """
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, Mapping):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole(item) for item in value)
    return value


def part_like(value: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
    """Splits a whole tensor as `pattern` is split; leaves it whole if that one is."""
    if isinstance(pattern, DTensor) and value.shape == pattern.shape:
        return distribute_tensor(value, pattern.device_mesh, pattern.placements)
    return value


def parts_of_optimizer(
    state: Mapping[str, Any], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Splits an optimiser's whole state as its parameters are split."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    split = {
        index: {
            name: part_like(item, parameters[index]) if isinstance(item, torch.Tensor) else item
            for name, item in items.items()
        }
        for index, items in state["state"].items()
    }
    return {"state": split, "param_groups": state["param_groups"]}
