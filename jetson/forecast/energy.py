"""A board's power while it decodes: a model with four terms, fitted to two published points.

Power = idle + what running clocks cost + what memory traffic costs + what operations cost, cut at
the mode's budget. It is a model, not a measurement: two points fix it and none checks it, so take
it for the order of magnitude and for comparing settings; `dlm-profile` measures.

Fitted to: 3.5 W idle at 25W; SmolLM2-135M under llama.cpp at 25W, 165 tokens/s and 22.6 tokens per
joule, 7.3 W; 21.7 W at the peak of a TensorRT language model run with MAXN_SUPER. All VDD_IN.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..targets import PowerMode

IDLE_W = 3.5
"""Module at rest, clocks down."""
ACTIVE_W_PER_SM_GHZ = 0.27
"""Clocks up and kernels resident: 2 W with 8 SMs at 918 MHz."""
JOULES_PER_BYTE = 64e-12
"""LPDDR5 with its controller: about 8 pJ per bit."""
JOULES_PER_FP16_OP = 1.2e-12
"""From what is left of the peak at about 8 TFLOPS; INT8 takes half."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """What the model gives for a run repeated without pause."""

    watts: float
    joules_per_run: float
    capped: bool
    """Whether the mode's budget would slow the board down."""


def power(
    mode: PowerMode, seconds: float, moved_bytes: int, fp16_ops: float, int8_ops: float
) -> Power:
    """Returns the power of a run of `seconds` that moves and computes this much."""
    steady = IDLE_W + ACTIVE_W_PER_SM_GHZ * mode.num_sms * mode.gpu_mhz / 1e3
    work = moved_bytes * JOULES_PER_BYTE + (fp16_ops + int8_ops / 2) * JOULES_PER_FP16_OP
    wanted = steady + work / seconds
    watts = wanted if mode.watts is None else min(wanted, mode.watts)
    # At the cap clocks fall: the same energy is spent over a longer time.
    return Power(
        watts=watts,
        joules_per_run=wanted * seconds,
        capped=mode.watts is not None and watts < wanted,
    )
