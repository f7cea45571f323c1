"""What a target is: a machine a bundle is made for, with its power modes. Types only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ...runtime.errors import ConfigError

INT8_OPS_PER_SM_CLOCK = 4096
"""Dense INT8 operations per SM and clock of Ampere's Orin variant: 8 SMs at 1,020 MHz give the 33
dense TOPS (67 sparse) that NVIDIA states for the Orin Nano Super. Measured on that GPU at 612 MHz:
19.51 of 20.05 TOPS, 97 %."""
FP16_OPS_PER_SM_CLOCK = 2048
"""Half of INT8, whether sums are float16 or float32: measured 9.68 and 9.73 of 10.03 TFLOPS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerMode:
    """One power mode of a board, as its nvpmodel.conf has it."""

    name: str
    """nvpmodel's name in lower case, `-` for `_`: 7w, 15w, 25w, maxn-super."""
    nvpmodel_id: int | None
    """What `nvpmodel -m` takes; None: the board's present file has no such mode."""
    watts: float | None
    """Power budget of the module; None: no cap."""
    num_sms: int
    """Streaming multiprocessors left on by the mode's TPC mask, two per TPC."""
    gpu_mhz: float
    cpu_cores: int
    cpu_mhz: float
    emc_mhz: float
    """Memory clock; data moves at both edges."""
    bandwidth_gb_s: float
    """Peak of the memory: 2 x emc_mhz x bus width."""
    source: str
    """Where the clocks come from."""

    @property
    def fp16_tflops(self) -> float:
        """Dense tensor core rate in float16."""
        return self.num_sms * FP16_OPS_PER_SM_CLOCK * self.gpu_mhz / 1e6

    @property
    def int8_tops(self) -> float:
        """Dense tensor core rate in INT8; sparse figures are twice that."""
        return self.num_sms * INT8_OPS_PER_SM_CLOCK * self.gpu_mhz / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class JetPack:
    """One release of the board's software."""

    version: str
    l4t: str
    python: str
    cuda: str
    tensorrt: str
    orin: bool
    """Whether it runs on Orin at all: 7.0 and 7.1 are for Thor only."""
    note: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A machine that a bundle can be made for."""

    name: str
    title: str
    kind: str
    """gpu (TensorRT, float16 in the graph) or cpu (ONNX Runtime, float32 arithmetic)."""
    modes: Mapping[str, PowerMode]
    """By name; empty for a CPU."""
    default_mode: str
    """Name of the mode the board boots in; empty for a CPU."""
    compute_capability: str = ""
    bus_bits: int = 0
    """Width of the memory bus."""
    l2_mib: float = 0.0
    memory_mib: int = 0
    """MemTotal that Linux reports; 0: ask the machine."""
    system_mib: int = 0
    """Taken by the system itself without a desktop."""
    part_number: str = ""
    """Of the module, as device trees name it."""
    sources: Mapping[str, str]
    """Fact -> where it comes from; one that begins with `estimated` was not found."""

    def to_json(self) -> dict[str, Any]:
        """Plain data, the rates of each mode included."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        modes = {
            mode.name: {
                **asdict(mode),
                "fp16_tflops": mode.fp16_tflops,
                "int8_tops": mode.int8_tops,
            }
            for mode in self.modes.values()
        }
        return {**own, "modes": modes, "sources": dict(self.sources)}

    @property
    def is_gpu(self) -> bool:
        """Whether graphs are typed for TensorRT."""
        return self.kind == "gpu"

    def mode(self, name: str | None = None) -> PowerMode | None:
        """Returns a power mode, the default one for None; None for a machine without modes.

        Raises:
            ConfigError: The target has no such mode.
        """
        wanted = self.default_mode if name is None else normal_mode_name(name)
        if not self.modes and not wanted:
            return None
        if wanted not in self.modes:
            offered = ", ".join(self.modes) or "none"
            raise ConfigError(f"target {self.name} has no power mode {name!r}; it has: {offered}")
        return self.modes[wanted]


def normal_mode_name(name: str) -> str:
    """Returns a mode's name as the tables have it: `MAXN_SUPER` -> `maxn-super`, and as AGX Orin
    writes it, `MODE_15W` -> `15w`."""
    return name.strip().lower().replace("_", "-").replace(" ", "-").removeprefix("mode-")
