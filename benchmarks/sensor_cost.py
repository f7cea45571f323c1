"""What reading the sensors costs: CPU time of the sampling thread, as a share of one core.

    python -m dlm_edge.benchmarks.sensor_cost --out benchmarks/results/sensor_cost.json

On a board the sensors are its own (`--here`). Elsewhere a folder of as many files as an Orin Nano
shows is read, beside this process's own memory: plain files instead of sysfs, whose drivers may
take longer to answer. CPU time hardly depends on what else runs; each rate is taken several times,
the rates in turn.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import click

from ..jetson.sensors.sampler import Sampler
from ..jetson.sensors.sysfs import ROOT
from ..runtime.cli.common import DlmCommand
from .report import print_table, record, write_json

RATES = (10.0, 20.0, 50.0)
LIMIT_PERCENT = 1.0
_MONITOR = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
_COLUMNS = (
    ("readings/s", "rate_hz"),
    ("sensors", "sensors"),
    ("% of a core", "percent"),
    ("lowest", "low"),
    ("highest", "high"),
)


def make_files(root: Path) -> Path:
    """Writes files like those of an Orin Nano: rails, GPU, CPU, zones, alerts, counters."""
    files = {
        "sys/devices/platform/gpu.0/load": 995,
        "sys/class/devfreq/17000000.gpu/cur_freq": 918000000,
        "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": 729600,
        "sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq": 1344000,
    }
    for channel, label in enumerate(("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"), start=1):
        files[f"{_MONITOR}/in{channel}_label"] = label
        files[f"{_MONITOR}/in{channel}_input"] = 5064
        files[f"{_MONITOR}/curr{channel}_input"] = 684
    for number, name in enumerate(("cpu", "gpu", "soc0", "soc1", "soc2", "tj")):
        files[f"sys/class/thermal/thermal_zone{number}/type"] = f"{name}-thermal"
        files[f"sys/class/thermal/thermal_zone{number}/temp"] = 47000
        files[f"sys/class/thermal/cooling_device{number}/type"] = f"{name}-throttle-alert"
        files[f"sys/class/thermal/cooling_device{number}/cur_state"] = 0
    for number in (1, 2, 3):
        files[f"sys/devices/platform/soctherm-oc-event/hwmon/hwmon3/oc{number}_event_cnt"] = 4
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    (root / "proc").symlink_to("/proc")
    return root


def cost(root: Path, rate: float, seconds: float) -> tuple[float, int]:
    """Returns the thread's share of a core in per cent, and how many sensors it read."""
    sampler = Sampler("sysfs", rate, root=root)
    zero = time.perf_counter()
    sampler.start()
    time.sleep(seconds)
    sampler.stop()
    found = sampler.to_json(zero)
    return found["cost_percent_of_core"], len(found["columns"])


@click.command("sensor_cost", cls=DlmCommand)
@click.option("--here", is_flag=True, help="Read this machine's own sensors.")
@click.option("--rounds", type=click.IntRange(min=1), default=5)
@click.option("--seconds", type=click.FloatRange(min=0.5), default=4.0)
@click.option("--out", type=click.Path(path_type=Path), help="JSON with every figure.")
def main(here: bool, rounds: int, seconds: float, out: Path | None) -> None:
    """Measures what the sampling thread takes at 10, 20 and 50 readings a second."""
    taken: dict[float, list[float]] = {rate: [] for rate in RATES}
    sensors = 0
    about = record()
    with tempfile.TemporaryDirectory(prefix="dlm-sensors-") as name:
        root = ROOT if here else make_files(Path(name))
        for _ in range(rounds):
            for rate in RATES:
                percent, sensors = cost(root, rate, seconds)
                taken[rate].append(percent)
    rows: list[dict[str, Any]] = [
        {
            "rate_hz": rate,
            "sensors": sensors,
            "percent": median(values),
            "low": min(values),
            "high": max(values),
        }
        for rate, values in taken.items()
    ]
    print_table(_COLUMNS, rows)
    within = rows[-1]["percent"] < LIMIT_PERCENT
    click.echo(
        f"under {LIMIT_PERCENT:g} % at {RATES[-1]:g} readings/s: {'yes' if within else 'no'}"
    )
    if out is not None:
        here_json = {"own_sensors": here, "seconds": seconds, "limit_percent": LIMIT_PERCENT}
        write_json(out, about | here_json | {"within": within, "rows": rows})


if __name__ == "__main__":
    main()
