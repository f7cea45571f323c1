"""Optimisers, the learning-rate schedule and the moving average of the weights.

Muon (Jordan et al. 2024) orthogonalises the update of every hidden matrix;
embeddings, head, norms and biases stay with AdamW. Both are one `torch.optim.Optimizer` here, so
that gradient scaling, clipping and saving treat them as one.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from ...runtime.errors import ConfigError

OPTIMIZERS = ("muon", "adamw")

MAX_WARMUP = 0.1
"""Share of a run after which the learning rate has risen to its peak, however short the run is."""

_ALGORITHM = "algorithm"
"""Key of a parameter group that says which inner optimiser updates it."""


_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of one step of `orthogonal`."""


def orthogonal(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Moves the singular values of a matrix towards 1 by Newton-Schulz steps.

    In bfloat16 on a GPU. CPUs compute that in float32, widened and rounded at every step, which
    takes several times as long as float32 itself.
    """
    a, b, c = _QUINTIC
    found = matrix.to(torch.bfloat16 if matrix.is_cuda else torch.float32, copy=True)
    tall = found.size(0) > found.size(1)
    found = found.T if tall else found
    found.div_(found.norm().clamp(min=1e-7))
    for _ in range(steps):
        gram = found @ found.T
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found.T if tall else found


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal, scaled to the size that AdamW's has."""

    def __init__(self, params: Iterable[nn.Parameter], *, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates every matrix that has a gradient."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                mean = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
                update = orthogonal(parameter.grad.lerp(mean, momentum))
                parameter.mul_(1 - lr * group["weight_decay"])
                size = 0.2 * math.sqrt(max(parameter.shape))
                parameter.add_(update.to(parameter.dtype), alpha=-lr * size)


class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimisers over disjoint parameters, with one state and one list of groups."""

    def __init__(self, inner: dict[str, torch.optim.Optimizer]) -> None:
        self._inner = inner
        groups = [{**g, _ALGORITHM: name} for name, o in inner.items() for g in o.param_groups]
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Updates every parameter with its own algorithm."""
        loss = closure() if closure is not None else None
        for name, optimizer in self._inner.items():
            # Linked anew each time, since loading a state replaces both objects.
            optimizer.param_groups = [g for g in self.param_groups if g[_ALGORITHM] == name]
            optimizer.state = self.state
            optimizer.step()
        return loss


def make_optimizer(
    model: nn.Module,
    name: str,
    *,
    lr: float,
    adamw_lr: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> CombinedOptimizer:
    """Groups the parameters and builds the optimiser.

    Weight decay falls on matrices only. Muon takes the two-dimensional hidden matrices; one
    learning rate serves both algorithms.

    Raises:
        ConfigError: if the name is unknown.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    hidden, tables, vectors = [], [], []
    for parameter_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2:
            vectors.append(parameter)
        elif parameter.ndim > 2 or id(parameter) in embeddings or "head" in parameter_name:
            tables.append(parameter)
        else:
            hidden.append(parameter)
    plain: list[dict[str, Any]] = [
        {"params": tables, "weight_decay": weight_decay, "lr": adamw_lr},
        {"params": vectors, "weight_decay": 0.0, "lr": adamw_lr},
    ]
    inner: dict[str, torch.optim.Optimizer] = {}
    match name:
        case "muon":
            inner["muon"] = Muon(hidden, lr=lr, weight_decay=weight_decay)
        case "adamw":
            plain.insert(0, {"params": hidden, "weight_decay": weight_decay, "lr": lr})
        case _:
            raise ConfigError(f"--optimizer {name!r}: choose one of {', '.join(OPTIMIZERS)}")
    groups = [group for group in plain if group["params"]]
    inner["adamw"] = torch.optim.AdamW(groups, lr=adamw_lr, betas=betas)
    optimizer = CombinedOptimizer(inner)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def lr_factor(step: int, progress: float, *, warmup_steps: int, min_ratio: float) -> float:
    """Returns the share of the peak learning rate: linear warm-up, then a cosine to `min_ratio`.

    Args:
        progress: share of the run that is done, 0 to 1.
        warmup_steps: steps of the linear rise, which ends with `MAX_WARMUP` of the run at the
            latest.
    """
    rise = min(1.0, max((step + 1) / (warmup_steps + 1), progress / MAX_WARMUP))
    fall = min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return rise * fall


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets every group's learning rate to `factor` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


class Ema:
    """Exponential moving average of a model's parameters, kept in float32."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self._parameters = [p for p in parameters if p.requires_grad]
        self.decay = decay
        self.shadow = [p.detach().float().clone() for p in self._parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves towards the present weights; the decay itself warms up over the first steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for mean, value in zip(self.shadow, self._parameters, strict=True):
            mean.lerp_(value.detach().float(), 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Puts the averaged weights into the model for the duration of the block."""
        kept = [p.detach().clone() for p in self._parameters]
        self._set(self.shadow)
        try:
            yield
        finally:
            self._set(kept)

    @torch.no_grad()
    def _set(self, values: list[torch.Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)
