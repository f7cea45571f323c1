"""Where a step is timed: a GPU's device, PyTorch beside it, and how calls on both are timed.

Tests put the emulated device and the CPU in its place, so that every line of the benchmarks has run
before a GPU is at hand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..runtime.bundle.manifest import GraphSpec
from ..runtime.gpu.cuda import CudaDevice
from ..runtime.gpu.replay import ReplayingDevice
from .gpu_engine import TorchDeviceEngine, TorchDeviceEngines


def called_ms(call: Callable[[], Any], wait: Callable[[], None], number: int = 50) -> float:
    """Times calls one after another, host included."""
    begin = time.perf_counter()
    for _ in range(number):
        call()
    wait()
    return 1e3 * (time.perf_counter() - begin) / number


@dataclass(slots=True, kw_only=True)
class Place:
    """A device that kernels run on, and PyTorch on the same one."""

    device: ReplayingDevice
    kind: str = "cuda"
    """PyTorch's name of it."""
    compile: Callable[..., Any] = torch.compile
    wait: Callable[[], None] = torch.cuda.synchronize
    """For PyTorch's own calls."""
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of TorchDeviceEngines."""
    repeats: int = 20
    """Calls inside one captured graph: one call alone would be timed with its launch."""

    @classmethod
    def open(cls) -> Place:
        """Opens the first GPU."""
        place = cls(device=ReplayingDevice(CudaDevice()))
        torch.cuda.init()
        return place

    def engine(self, module: Callable[..., Any], spec: GraphSpec) -> TorchDeviceEngine:
        """Makes an engine of a module, compiled, at one shape; its inputs are zeros."""
        modules = {spec.name: self.compile(module, dynamic=False)}
        engines = TorchDeviceEngines(modules, [spec], self.device, **self.engine_options)
        engine = engines.engine(spec)
        for array in engine.inputs.values():
            self.device.zero(array)  # ids that are in the vocabulary, though nobody assigns them
        return engine

    def captured_ms(self, enqueue: Callable[[], None], repeats: int | None = None) -> float:
        """Times work as the GPU alone sees it."""
        repeats = repeats or self.repeats
        enqueue()
        self.device.synchronize()

        def many() -> None:
            for _ in range(repeats):
                enqueue()

        step = self.device.capture(many)
        step.replay()
        self.device.synchronize()
        return called_ms(step.replay, self.device.synchronize, 10) / repeats

    def rule_ms(self, rule: Callable[[], Any]) -> float:
        """Times a rule of PyTorch's, once it is warm."""
        with torch.inference_mode():
            for _ in range(5):
                rule()
            self.wait()
            return called_ms(rule, self.wait)

    def peers_ms(self, name: str, rule: Callable[..., Any], *given: Any) -> dict[str, float]:
        """Times a rule in PyTorch eager and under torch.compile, by `PEERS` of a name."""
        rules = (
            rule,
            self.compile(rule, dynamic=False),
            self.compile(rule, dynamic=False, mode="reduce-overhead"),
        )
        return {
            peer.format(name): self.rule_ms(lambda: one(*given))  # noqa: B023
            for peer, one in zip(PEERS, rules, strict=True)
        }


PEERS = ("eager {}", "compiled {}", "compiled {}, reduce-overhead")
"""What a figure of a rule's peer is called."""
