"""Orin boards and their power modes as plain data, each fact with its source.

Clocks are those of the nvpmodel.conf files that NVIDIA ships per module. A maximum of -1 there
means the chip's own limit, which is here as a number with the source of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType
from typing import Any

from .types import PowerMode, Target

_CONF = "LineageOS/android_device_nvidia_concord nvpmodel/nvpmodel_{}.conf (NVIDIA's file)"
_DUMP = "public dumps of Orin Nano Super boards: CPU 1,728, GPU 1,020, EMC 3,199 MHz"
_TEGRASTATS = "tegrastats lines of real boards: RAM .../{} MB"
_CARVE_OUT = "estimated: module size less the 8 GB Orin Nano's carve-outs (585 to 706 MB)"
_IDLE = "Orin Nano 8 GB, JetPack 6.2.2 without a desktop: 519 MB in use; 2.8 GB with one"
_BUS = "NVIDIA module data sheets: LPDDR5, 64, 128 or 256 bits"
_L2 = "deviceQuery of an 8-SM Orin: 2 MiB; AGX Orin series technical brief: 4 MiB"


def _orin(
    name: str,
    title: str,
    part_number: str,
    *,
    bus_bits: int,
    l2_mib: float = 2.0,
    memory_mib: int,
    default_mode: str,
    conf: str,
    modes: Iterable[tuple[Any, ...]],
    memory: str | None = None,
    system: str = "estimated: as the Orin Nano's",
    l2: str = _L2,
) -> Target:
    """Makes a board; `memory`, `system` and `l2` are sources.

    A mode: name, id, watts, TPCs left on, GPU MHz, CPU cores, CPU MHz, EMC MHz[, source].
    """
    found = {}
    for mode, number, watts, tpcs, gpu, cores, cpu, emc, *source in modes:
        found[mode] = PowerMode(
            name=mode,
            nvpmodel_id=number,
            watts=watts,
            num_sms=2 * tpcs,
            gpu_mhz=gpu,
            cpu_cores=cores,
            cpu_mhz=cpu,
            emc_mhz=emc,
            bandwidth_gb_s=2 * emc * bus_bits / 8 / 1e3,
            source=source[0] if source else _CONF.format(conf),
        )
    sources = {
        "memory_mib": memory or _TEGRASTATS.format(memory_mib),
        "system_mib": system,
        "bus_bits": _BUS,
        "l2_mib": l2,
    }
    return Target(
        name=name,
        title=title,
        kind="gpu",
        compute_capability="8.7",
        part_number=part_number,
        bus_bits=bus_bits,
        l2_mib=l2_mib,
        memory_mib=memory_mib,
        system_mib=519,
        default_mode=default_mode,
        modes=MappingProxyType(found),
        sources=MappingProxyType(sources),
    )


ORIN_NANO = _orin(
    "orin-nano", "Jetson Orin Nano 8 GB (Super)", "p3767-0003",
    bus_bits=128, memory_mib=7607, default_mode="25w", conf="p3767_0003_super",
    modes=(
        # The Super file of JetPack 7.2.1 has a 7 W mode, number 3; its clocks are those of the
        # file before Super, which calls it number 1.
        ("7w", 3, 7.0, 2, 408.0, 4, 960.0, 2133.0, _CONF.format("p3767_0003")),
        ("15w", 0, 15.0, 4, 612.0, 6, 1497.6, 2133.0),
        ("25w", 1, 25.0, 4, 918.0, 6, 1344.0, 3199.0),
        ("maxn-super", 2, None, 4, 1020.0, 6, 1728.0, 3199.0, _DUMP),
    ),
    memory=_TEGRASTATS.format(7607) + " (6.2.2), 7620 (6.2), 7486 (7.2.1)", system=_IDLE,
)  # fmt: skip

ORIN_NANO_4GB = _orin(
    "orin-nano-4gb", "Jetson Orin Nano 4 GB (Super)", "p3767-0004",
    bus_bits=64, memory_mib=3400, default_mode="25w", conf="p3767_0004_super",
    modes=(
        # Only the file before Super has it, under the number that Super gives to 25W.
        ("7w-ai", None, 7.0, 2, 408.0, 4, 806.4, 2133.0, _CONF.format("p3767_0004")),
        ("10w", 0, 10.0, 2, 612.0, 6, 1497.6, 2133.0),
        ("25w", 1, 25.0, 2, 1020.0, 6, 1728.0, 3199.0),
        ("maxn-super", 2, None, 2, 1020.0, 6, 1728.0, 3199.0, _DUMP),
    ),
    memory=_CARVE_OUT, system="estimated: as the 8 GB board's", l2="estimated: as the 8 GB board's",
)  # fmt: skip

_NX_LIMITS = (
    "chip limits: GPU 1,173 MHz as in mode 40W; tegrastats of Orin NX boards: CPU 1,984, "
    "EMC 3,199 MHz"
)

ORIN_NX = _orin(
    "orin-nx", "Jetson Orin NX 16 GB (Super)", "p3767-0000",
    bus_bits=128, memory_mib=15656, default_mode="40w", conf="p3767_0000_super",
    modes=(
        ("10w", 1, 10.0, 2, 612.0, 4, 1190.4, 2133.0),
        ("15w", 2, 15.0, 2, 612.0, 4, 1420.8, 3199.0),
        ("25w", 3, 25.0, 4, 408.0, 8, 1497.6, 3199.0),
        ("40w", 4, 40.0, 4, 1173.0, 8, 1497.6, 3199.0),
        ("maxn-super", 0, None, 4, 1173.0, 8, 1984.0, 3199.0, _NX_LIMITS),
    ),
)  # fmt: skip

ORIN_NX_8GB = _orin(
    "orin-nx-8gb", "Jetson Orin NX 8 GB (Super)", "p3767-0001",
    bus_bits=128, memory_mib=7607, default_mode="40w", conf="p3767_0001_super",
    modes=(
        ("10w", 1, 10.0, 2, 612.0, 4, 1190.4, 2133.0),
        ("15w", 2, 15.0, 2, 612.0, 4, 1420.8, 3199.0),
        ("20w", 3, 20.0, 4, 408.0, 6, 1497.6, 3199.0),
        ("40w", 4, 40.0, 4, 1173.0, 6, 1984.0, 3199.0),
        ("maxn-super", 0, None, 4, 1173.0, 6, 1984.0, 3199.0, _NX_LIMITS),
    ),
    memory="estimated: as the Orin Nano's, whose module is of the same size",
)  # fmt: skip

AGX_ORIN = _orin(
    "agx-orin", "Jetson AGX Orin 64 GB", "p3701-0005",
    bus_bits=256, l2_mib=4.0, memory_mib=62841, default_mode="30w", conf="p3701_0000",
    modes=(
        ("15w", 1, 15.0, 3, 408.0, 4, 1113.6, 2133.0),
        ("30w", 2, 30.0, 4, 612.0, 8, 1728.0, 3199.0),
        ("50w", 3, 50.0, 8, 816.0, 12, 1497.6, 3199.0),
        ("maxn", 0, None, 8, 1301.0, 12, 2201.6, 3199.0,
         "AGX Orin series data sheet: GPU 1.3 GHz, CPU 2.2 GHz; tegrastats: CPU 2,201"),
    ),
)  # fmt: skip

AGX_ORIN_32GB = _orin(
    "agx-orin-32gb", "Jetson AGX Orin 32 GB", "p3701-0004",
    bus_bits=256, l2_mib=4.0, memory_mib=30697, default_mode="30w", conf="p3701_0004",
    modes=(
        ("15w", 1, 15.0, 3, 408.0, 4, 1113.6, 2133.0),
        ("30w", 2, 30.0, 4, 612.0, 8, 1728.0, 3199.0),
        ("40w", 3, 40.0, 7, 816.0, 8, 1497.6, 3199.0),
        ("maxn", 0, None, 7, 930.0, 8, 2201.6, 3199.0,
         "AGX Orin series data sheet: GPU 930 MHz, CPU 2.2 GHz; as the 64 GB module's"),
    ),
    memory=_TEGRASTATS.format(30697) + " (8 cores, JetPack 6)",
    l2="estimated: as the 64 GB module's",
)  # fmt: skip

BOARDS = (ORIN_NANO, ORIN_NANO_4GB, ORIN_NX, ORIN_NX_8GB, AGX_ORIN_32GB, AGX_ORIN)
MODULES = MappingProxyType(
    {
        "p3767-0003": "orin-nano",
        "p3767-0005": "orin-nano",  # of the developer kit
        "p3767-0004": "orin-nano-4gb",
        "p3767-0000": "orin-nx",
        "p3767-0002": "orin-nx",
        "p3767-0001": "orin-nx-8gb",
        "p3701-0004": "agx-orin-32gb",
        "p3701-0005": "agx-orin",
    }
)
"""Module's part number, as the device tree's `compatible` has it -> target. The first AGX Orin kit
(p3701-0000) has the GPU of the 64 GB module and the memory of the other: memory decides there.
Source: the same repository as the files of modes, which picks one by these numbers."""
