"""An Orin Nano's files below a folder, as its kernel and JetPack lay them out.

Values are those of public reports of an Orin Nano Super under JetPack 7.2.1 (idle, mode 25W) where
they have them; paths of JetPack 6 and 7 as jetson-stats and NVIDIA's guides name them.
"""

from pathlib import Path

NVPMODEL_CONF = """\
# VDD_IN, in mW
< POWER_MODEL ID=0 NAME=15W >
CPU_A78_0 MAX_FREQ 1497600
< POWER_MODEL ID=1 NAME=25W >
CPU_A78_0 MAX_FREQ 1344000
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
"""
FILES = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.7, GCID: 42132812, BOARD: generic\n",
    "etc/nvpmodel.conf": NVPMODEL_CONF,
    "var/lib/nvpmodel/status": "pmode:0001 fmode:quiet\n",
    "proc/meminfo": "MemTotal: 7802880 kB\nMemFree: 1612000 kB\nMemAvailable: 4612096 kB\n"
    "SwapTotal: 3901440 kB\nSwapFree: 3901440 kB\n",
    "proc/cmdline": "root=PARTUUID=1 rw rootwait rootfstype=ext4\n",
    "proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 62.50\n",
    "usr/local/cuda/version.json": '{\n   "cuda" : {\n      "name" : "CUDA SDK",\n'
    '      "version" : "12.6.11"\n   }\n}\n',
    "sys/devices/platform/gpu.0/load": "995\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "918000000\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "918000000\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "729600\n",
    "sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq": "1344000\n",
}
INA3221 = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
RAILS = (("VDD_IN", 5064, 684), ("VDD_CPU_GPU_CV", 5056, 104), ("VDD_SOC", 5064, 224))
"""Label, mV, mA."""
ZONES = (("cpu-thermal", 46031), ("gpu-thermal", 46750), ("cv0-thermal", 0), ("tj-thermal", 47000))
ALERTS = ("cpu-throttle-alert", "gpu-throttle-alert", "pwm-fan")
EVENTS = "sys/devices/platform/soctherm-oc-event/hwmon/hwmon3"


def write(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def make_board(root: Path, *, rails: bool = True) -> Path:
    """Writes the files; without `rails` there is no power monitor in sysfs."""
    for name, text in FILES.items():
        write(root, name, text)
    for channel, (label, volts, amperes) in enumerate(RAILS if rails else (), start=1):
        write(root, f"{INA3221}/in{channel}_label", label + "\n")
        write(root, f"{INA3221}/in{channel}_input", f"{volts}\n")
        write(root, f"{INA3221}/curr{channel}_input", f"{amperes}\n")
    if rails:  # the sum of the shunts, which is no rail
        write(root, f"{INA3221}/in7_label", "sum of shunt voltages\n")
        write(root, f"{INA3221}/in7_input", "5\n")
    for number, (name, millidegrees) in enumerate(ZONES):
        write(root, f"sys/class/thermal/thermal_zone{number}/type", name + "\n")
        write(root, f"sys/class/thermal/thermal_zone{number}/temp", f"{millidegrees}\n")
    for number, name in enumerate(ALERTS):
        write(root, f"sys/class/thermal/cooling_device{number}/type", name + "\n")
        write(root, f"sys/class/thermal/cooling_device{number}/cur_state", "0\n")
    for number in (1, 2, 3):
        write(root, f"{EVENTS}/oc{number}_event_cnt", "4\n")
    # This process, as on any Linux.
    (root / "proc/self").symlink_to("/proc/self")
    return root
