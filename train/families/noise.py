"""Corruption of training batches by masked diffusion: times per block, masks per position.

Two ways to draw masks under the same bound:
- `independent`: each position of a block at time t is masked with chance m(t), weight m'(t) / m(t);
- `count`: as many as k of the block's M scored positions, k following m(t), which ones at random,
  weight M / k. Given t the count is binomial, and weight times its chance integrates over t to
  1 / k for every k: so this is the bound of the first way with the count's and the weight's
  variance integrated out. A block of one position is always masked, with weight 1: the causal
  likelihood itself.

Knows no model. Source: BD3-LM (arXiv 2503.09573), section 4, on that variance; for `count`, the
any-order form of the bound (arXiv 2406.03736).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...runtime.noise.schedule import NoiseSchedule

MASKINGS = ("independent", "count")
SMALLEST_T = 1e-9
"""A t of exactly 0 has an infinite weight and masks nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """One draw of corruption for a batch."""

    block_size: int
    masked: torch.Tensor
    """(B, L) bool: positions that x_t hides; column 0 is False."""
    weight: torch.Tensor
    """(B, L / block_size) float32: each block's weight in the bound."""
    move_chance: torch.Tensor
    """(B, L / block_size) float32."""
    time: torch.Tensor
    """(B, L / block_size) float64 on the CPU: each block's t."""

    def rows(self, first: int, last: int, device: torch.device) -> Noise:
        """Returns the noise of sequences first to last - 1, on a device."""
        return Noise(
            block_size=self.block_size,
            masked=self.masked[first:last].to(device),
            weight=self.weight[first:last].to(device),
            move_chance=self.move_chance[first:last].to(device),
            time=self.time[first:last],
        )


def draw_times(
    batch: int, num_blocks: int, t_range: tuple[float, float], generator: torch.Generator
) -> torch.Tensor:
    """Draws a time per block, low-discrepancy: (u + i) / n mod 1 over all n blocks of the batch.

    They are dealt to the blocks in random order, so that neighbours in a text are independent.

    Returns:
        (batch, num_blocks) float64 within `t_range`.
    """
    count = batch * num_blocks
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    order = torch.randperm(count, generator=generator)
    unit = (((offset + order) / count) % 1.0).clamp(min=SMALLEST_T)
    low, high = t_range
    return (low + (high - low) * unit).view(batch, num_blocks)


def draw_noise(
    shape: tuple[int, int],
    block_size: int,
    schedule: NoiseSchedule,
    generator: torch.Generator,
    *,
    t_range: tuple[float, float] = (0.0, 1.0),
    masking: str = "independent",
) -> Noise:
    """Draws times and masks on the CPU.

    Args:
        shape: (B, L) of the batch.
        block_size: Positions that share a time; divides L.
        masking: `independent` or `count`.
    """
    batch, length = shape
    t = draw_times(batch, length // block_size, t_range, generator)
    chance, weight = schedule.move_chance(t), schedule.weight(t)
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    match masking:
        case "independent":
            masked = uniform < chance.repeat_interleave(block_size, dim=1)
            masked[:, 0] = False
        case "count":
            least, most = schedule.move_chance(0.0), schedule.move_chance(1.0)
            level = (chance - least) / (most - least)
            masked, factor = _masked_by_count(uniform, level, block_size)
            # m'(t) / (m(1) - m(0)) turns times that are even in t into levels that are even.
            weight = factor * (weight * chance / (most - least))
        case _:
            raise ValueError(f"masking {masking!r} is none of {MASKINGS}")
    return Noise(
        block_size=block_size,
        masked=masked,
        weight=weight.float(),
        move_chance=chance.float(),
        time=t,
    )


def _masked_by_count(
    uniform: torch.Tensor, level: torch.Tensor, block_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks the k positions of each block with the smallest uniforms, k = 1 + floor(level M).

    Args:
        uniform: (B, L).
        level: (B, blocks) in [0, 1).

    Returns:
        (B, L) bool, and M / k per block, 0 for a block that has nothing to score.
    """
    scored = torch.full_like(level, block_size)
    scored[:, 0] -= 1  # position 0 is given
    count = torch.minimum(1 + (level * scored).floor(), scored)
    draws = uniform.clone()
    draws[:, 0] = 2.0  # ranks behind all others
    rank = draws.view(*level.shape, block_size).argsort(dim=-1).argsort(dim=-1)
    masked = (rank < count[:, :, None]).view(uniform.shape)
    return masked, torch.where(count > 0, scored / count.clamp(min=1), 0.0)
