"""What a forecast asks of a machine, and the two kinds there are: a board's GPU, and this CPU."""

from __future__ import annotations

from typing import Protocol

from ...runtime.measure.machine import read_meminfo
from ..graph.cost import GraphCost
from ..targets import PowerMode, Target
from .host import HostRates
from .roofline import BANDWIDTH_SHARE, KERNEL_CLOCKS, Power, RunTime, gpu_time, power

MIB = 2**20
CUDA_CONTEXT_MIB = 160.0
"""Assumed: no authoritative figure for Orin was found; dlm-profile measures it."""
GPU_RUNTIME_MIB = 260.0
"""Assumed: Python, NumPy and tokenizer (67 MiB measured on a CPU), TensorRT's libraries."""
CPU_RUNTIME_MIB = 67.0
"""Of a process with ONNX Runtime open and no model, measured on x86-64 Linux, Python 3.11."""
SAMPLING_KERNELS = 2
MASKED_SHARE = 0.5
"""Of a block's rows, averaged over the steps that denoise it: what sampling works on."""


class Machine(Protocol):
    """How fast a machine runs what a graph costs, and what of its memory is free."""

    context_mib: float
    runtime_mib: float
    available_mib: float | None
    assumptions: tuple[str, ...]

    def run_time(self, cost: GraphCost) -> RunTime:
        """One run of a graph."""
        ...

    def outside_ms(self, rows: int, vocab_size: int) -> float:
        """Sampling and committing after one run."""
        ...

    def weight_bytes(self, cost: GraphCost) -> float:
        """Weights as the engine holds them."""
        ...

    def scratch_bytes(self, cost: GraphCost) -> int:
        """Peak of the values between operators."""
        ...

    def power(self, cost: GraphCost, run: RunTime, outside_ms: float) -> Power | None:
        """Power of steps without pause; None where there is no model."""
        ...


class Board:
    """A board in a power mode, from published figures."""

    context_mib = CUDA_CONTEXT_MIB
    runtime_mib = GPU_RUNTIME_MIB
    assumptions = (
        f"assumed: CUDA context {CUDA_CONTEXT_MIB:.0f} MiB, runtime {GPU_RUNTIME_MIB:.0f} MiB",
        "rates are shares of the data sheet's, fitted to published figures of other programs",
        "no desktop session is running on the board",
        "TensorRT keeps one copy of the weights for all shapes, as it is asked to",
        "power is a model fitted to two published points",
    )

    def __init__(self, place: Target, mode: PowerMode) -> None:
        self.place, self.mode = place, mode
        self.available_mib: float | None = float(place.memory_mib - place.system_mib)

    def run_time(self, cost: GraphCost) -> RunTime:
        return gpu_time(cost, self.place, self.mode)

    def outside_ms(self, rows: int, vocab_size: int) -> float:
        """Two kernels, which read every logit of the masked rows once."""
        idle = SAMPLING_KERNELS * KERNEL_CLOCKS / (self.mode.gpu_mhz * 1e6)
        read = rows * MASKED_SHARE * vocab_size * 4
        return 1e3 * (idle + read / (self.mode.bandwidth_gb_s * 1e9 * BANDWIDTH_SHARE))

    def weight_bytes(self, cost: GraphCost) -> float:
        """TensorRT keeps them in the types they are stored in."""
        return cost.stored_bytes

    def scratch_bytes(self, cost: GraphCost) -> int:
        return cost.activation_bytes

    def power(self, cost: GraphCost, run: RunTime, outside_ms: float) -> Power | None:
        by_kind = {"int8": 0.0, "other": 0.0}
        for kernel in cost.kernels:
            by_kind["int8" if kernel.dtype == "int8" else "other"] += 2 * kernel.macs
        seconds = (run.captured_ms + outside_ms) / 1e3
        return power(self.mode, seconds, run.bytes, by_kind["other"], by_kind["int8"])


class Cpu:
    """This machine's CPU, from its measured rates."""

    context_mib = 0.0

    def __init__(self, place: Target, rates: HostRates | None) -> None:
        """Takes measured rates; without them only memory can be predicted."""
        self._rates = rates
        self.runtime_mib = CPU_RUNTIME_MIB if rates is None else rates.resident_mib
        self.available_mib = read_meminfo().get("MemAvailable") if place.name == "host" else None
        self.assumptions: tuple[str, ...] = ()
        if rates is not None:
            self.assumptions += (
                f"rates measured on this machine ({rates.cpu}, {rates.threads} threads)",
            )
            if rates.crowded:
                self.assumptions += (
                    f"other programs ran meanwhile: {rates.waited_share:.0%} of the time went by "
                    "waiting for a CPU, so that rates are too low; they are measured again",
                )
        if place.name != "host":
            self.assumptions += ("the CPU the bundle will run on may be another one",)

    @property
    def _measured(self) -> HostRates:
        assert self._rates is not None, "a forecast of time needs rates"
        return self._rates

    def run_time(self, cost: GraphCost) -> RunTime:
        return self._measured.run_time(cost)

    def outside_ms(self, rows: int, vocab_size: int) -> float:
        return 1e3 * self._measured.sampling_seconds(rows * MASKED_SHARE, vocab_size)

    def weight_bytes(self, cost: GraphCost) -> float:
        """Casts are folded while loading, and matrices laid out anew once."""
        return cost.widened_bytes

    def scratch_bytes(self, cost: GraphCost) -> int:
        return cost.node_activation_bytes

    def power(self, cost: GraphCost, run: RunTime, outside_ms: float) -> Power | None:
        """Nothing is known of a CPU's power."""
        return None
