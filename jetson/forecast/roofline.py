"""How long a run takes on a board, and at which power.

Each kernel takes its time at its roof, plus what a launch costs.

A kernel takes as long as the slower of its traffic and its products do at the rates a program
reaches, and then a fixed time in which the GPU does nothing for it. Nothing here was measured on a
board by this project; the shares come from published figures:

* Memory, 79 % of the peak: TensorRT Edge-LLM's decoding rates for Qwen3 0.6B and 1.7B in INT4 with
  2,048 positions of context (61.0 and 32.3 tokens/s on an Orin Nano, 98.9 on an Orin NX, 162.5 on
  an AGX Orin for 0.6B). Their differences give 54 of 68.3 GB/s on the Nano, and the other two fit
  the same share. A read-only kernel reaches 91 % (62.3 of 68.3 GB/s in mode 15W).
* Time per kernel: what is left of those rates is 0.6 to 2.2 ms for 28 layers of about ten kernels
  each, 5,000 GPU clocks per kernel in the middle.
* Products, 50 % of the tensor cores' peak: Edge-LLM's prefill of 2,048 positions reaches 41 and
  56 % of float16's peak for the two models; a bare loop of tensor core instructions 97 %.
* Launches without a captured graph: 12 us each on the CPU at 1.7 GHz, assumed; launches run ahead
  of the GPU, so they count only where they are slower than the kernels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..graph.cost import GraphCost, Kernel
from ..targets import PowerMode, Target

BANDWIDTH_SHARE = 0.79
PRODUCT_SHARE = 0.5
KERNEL_CLOCKS = 5000
LAUNCH_US = 12.0
LAUNCH_CPU_MHZ = 1728.0
CACHE_SHARE = 0.5
"""Values up to this share of the L2 cache are taken to stay in it from one kernel to the next."""
ROW_TILE = 16
"""Rows of a tensor core tile: a product of fewer costs as much."""
RATE_OF: dict[str, float] = {"int8": 2.0, "float16": 1.0, "bfloat16": 1.0, "float32": 0.5}
"""Tensor core rate as a multiple of float16's; float32 products run as TF32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTime:
    """One run of one graph."""

    captured_ms: float
    """With the run replayed from a CUDA graph; on a CPU the run."""
    uncaptured_ms: float
    """With every kernel launched by the host; on a CPU the same."""
    bytes: int
    """Moved from and to memory."""
    num_kernels: int
    """Launches; on a CPU the operators that are executed."""
    bound: str
    """What takes most of the time: memory, products or launches (`dispatch` on a CPU)."""


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
    """Returns the power of a run of `seconds` that moves and computes this much.

    Power = idle + running clocks + memory traffic + operations, cut at the mode's budget. It is a
    model fitted to two published points that none checks, for the order of magnitude and for
    comparing settings: 3.5 W idle at 25W; SmolLM2-135M under llama.cpp at 25W, 165 tokens/s and
    22.6 tokens per joule, 7.3 W; 21.7 W at the peak of a TensorRT language model run with
    MAXN_SUPER. All VDD_IN.
    """
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


def memory_bytes(kernel: Kernel, cache_bytes: float) -> int:
    """Bytes that a kernel moves to and from memory; small values stay in the cache."""
    spilled = sum(size for size in kernel.passed if size > cache_bytes)
    return kernel.weight_bytes + kernel.outer_bytes + spilled


def product_seconds(kernel: Kernel, mode: PowerMode) -> float:
    """Seconds of a kernel's multiply-accumulates."""
    if not kernel.macs:
        return 0.0
    padded = -(-kernel.rows // ROW_TILE) * ROW_TILE / kernel.rows
    rate = mode.fp16_tflops * 1e12 * RATE_OF.get(kernel.dtype, 0.5) * PRODUCT_SHARE
    return 2 * kernel.macs * padded / rate


def gpu_time(cost: GraphCost, target: Target, mode: PowerMode) -> RunTime:
    """Predicts one run on a board."""
    cache = target.l2_mib * 2**20 * CACHE_SHARE
    moved = [memory_bytes(kernel, cache) for kernel in cost.kernels]
    return _sum(
        moved,
        [product_seconds(kernel, mode) for kernel in cost.kernels],
        mode,
    )


def _sum(moved: Iterable[int], products: Iterable[float], mode: PowerMode) -> RunTime:
    bandwidth = mode.bandwidth_gb_s * 1e9 * BANDWIDTH_SHARE
    idle = KERNEL_CLOCKS / (mode.gpu_mhz * 1e6)
    launch = LAUNCH_US * 1e-6 * LAUNCH_CPU_MHZ / mode.cpu_mhz
    shares = {"memory": 0.0, "products": 0.0, "launches": 0.0}
    captured = uncaptured = 0.0
    count = total = 0
    for size, product in zip(moved, products, strict=True):
        memory = size / bandwidth
        shares["memory" if memory >= product else "products"] += max(memory, product)
        shares["launches"] += idle
        captured += max(memory, product) + idle
        total += size
        count += 1
    uncaptured = max(captured, count * launch)
    return RunTime(
        captured_ms=captured * 1e3,
        uncaptured_ms=uncaptured * 1e3,
        bytes=total,
        num_kernels=count,
        bound=max(shares, key=lambda name: shares[name]),
    )
