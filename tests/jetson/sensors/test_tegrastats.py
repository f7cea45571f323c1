"""Lines that boards printed, found in public repositories; where, is said beside each.

The last is NVIDIA's own description of the format: temperatures of parts that are off.
"""

import stat

import pytest
from dlm_edge.jetson.sensors.tegrastats import Tegrastats, parse_line
from dlm_edge.runtime.errors import DeviceError
from waiting import wait

# henrygd/beszel, internal/agent/gpu_test.go: Orin Nano 8 GB, JetPack 6, as root.
JETPACK_6_ROOT = (
    "11-15-2024 08:38:09 RAM 6185/7620MB (lfb 8x2MB) SWAP 851/3810MB (cached 1MB) "
    "CPU [15%@729,11%@729,14%@729,13%@729,11%@729,8%@729] EMC_FREQ 43%@2133 GR3D_FREQ 63%@[621] "
    "NVDEC off NVJPG off NVJPG1 off VIC off OFA off APE 200 cpu@53.968C soc2@52.437C soc0@50.75C "
    "gpu@53.343C tj@53.968C soc1@51.656C VDD_IN 12479mW/12479mW VDD_CPU_GPU_CV 4667mW/4667mW "
    "VDD_SOC 2817mW/2817mW"
)
# A test of a telemetry collector: Orin Nano 8 GB, JetPack 6, not root.
JETPACK_6_USER = (
    "08-10-2026 21:39:51 RAM 2513/7620MB (lfb 1x4MB) SWAP 25/3810MB (cached 0MB) "
    "CPU [11%@729,7%@729,8%@729,4%@729,3%@729,14%@729] GR3D_FREQ 0% cpu@51.218C soc2@51.093C "
    "soc0@50.125C gpu@51.593C tj@51.718C soc1@50.343C VDD_IN 4744mW/6179mW "
    "VDD_CPU_GPU_CV 1273mW/2369mW VDD_SOC 1234mW/1392mW"
)
# A dump of an Orin Nano Super under JetPack 7.2.1 (L4T 39.2.1), 2026-09-19, as root.
JETPACK_7_ROOT = (
    "09-19-2026 13:33:03 RAM 2845/7486MB (lfb 33x4MB) CPU [1%@729,0%@729,0%@729,0%@729,0%@729,"
    "0%@729] EMC_FREQ 3%@665 GR3D_FREQ 0%@[305] NVDEC0 off NVJPG0 off NVJPG1 off VIC off OFA off "
    "APE 200 cpu@45.375C/45.812C soc2@44.687C/44.843C soc0@46.25C/46.25C gpu@46.562C/46.843C "
    "tj@46.562C/46.843C soc1@46.281C/46.281C VDD_IN 3462mW/3522mW/3582mW "
    "VDD_CPU_GPU_CV 442mW/483mW/523mW VDD_SOC 1127mW/1127mW/1127mW"
)
# Notes on a TensorRT benchmark on an Orin Nano under JetPack 7, 2026-08-12, not root.
JETPACK_7_USER = (
    "08-12-2026 15:28:04 RAM 2390/7486MB (lfb 4x4MB) CPU [6%@729,4%@729,1%@729,13%@883,3%@729,"
    "5%@729] GR3D_FREQ 0% cpu@45.687C/45.687C soc2@45.156C/45.156C soc0@45.468C/45.468C "
    "gpu@46.843C/46.843C tj@46.843C/46.843C soc1@46.156C/46.156C VDD_IN 3848mW/3848mW/3848mW "
    "VDD_CPU_GPU_CV 606mW/606mW/606mW VDD_SOC 1174mW/1174mW/1174mW"
)
# A log analyser's test: Orin Nano in 15W, busy, JetPack 6; the average differs from the present.
BUSY = (
    "10-08-2026 04:35:02 RAM 6712/7620MB (lfb 12x4MB) SWAP 369/3810MB (cached 8MB) "
    "CPU [38%@1497,2%@729,1%@729,0%@729,1%@729,0%@729] EMC_FREQ 61%@2133 GR3D_FREQ 99%@[612] "
    "NVDEC off NVJPG off VIC off OFA off APE 200 cpu@57.125C soc2@55.093C soc0@56.625C "
    "gpu@58.625C tj@58.312C soc1@55.937C VDD_IN 16321mW/11204mW VDD_CPU_GPU_CV 7104mW/4944mW "
    "VDD_SOC 3120mW/3659mW"
)
LINES = (JETPACK_6_ROOT, JETPACK_6_USER, JETPACK_7_ROOT, JETPACK_7_USER, BUSY)


def values(line):
    return {name: value.value for name, value in parse_line(line).items()}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            JETPACK_6_ROOT,
            {"VDD_IN": 12.479, "VDD_CPU_GPU_CV": 4.667, "VDD_SOC": 2.817, "gpu load": 63,
             "gpu": 53.343, "cpu clock": 729,
             "gpu clock": 621, "emc clock": 2133, "tj": 53.968, "system free": 7620 - 6185,
             "swap used": 851, "largest free block": 2},
        ),
        (
            JETPACK_6_USER,
            {"VDD_IN": 4.744, "gpu load": 0, "gpu clock": None, "emc clock": None, "soc1": 50.343,
             "swap used": 25},
        ),
        (
            JETPACK_7_ROOT,
            {"VDD_IN": 3.462, "VDD_CPU_GPU_CV": 0.442, "VDD_SOC": 1.127, "gpu load": 0,
             "gpu clock": 305, "emc clock": 665, "cpu": 45.375, "swap used": None},
        ),
        (
            JETPACK_7_USER,
            {"VDD_IN": 3.848, "gpu load": 0, "gpu clock": None, "cpu clock": 883, "tj": 46.843},
        ),
        (BUSY, {"VDD_IN": 16.321, "gpu load": 99, "gpu clock": 612, "cpu clock": 1497}),
    ],
)  # fmt: skip
def test_the_present_figures_of_a_line_are_read(line, expected):
    found = values(line)
    assert {name: found.get(name) for name in expected} == expected


@pytest.mark.parametrize("line", LINES)
def test_every_rail_and_zone_has_its_unit(line):
    found = parse_line(line)
    assert {n for n, v in found.items() if v.kind == "power"} == {
        "VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC",
    }  # fmt: skip
    zones = {name for name, value in found.items() if value.unit == "°C"}
    assert zones == {"cpu", "gpu", "tj", "soc0", "soc1", "soc2"}


def test_parts_that_are_off_give_no_temperature():
    line = "RAM 1000/7620MB (lfb 200x4MB) CPU [10%@1000,off] GR3D_FREQ 20%@[1020] cv0@-256C gpu@40C"
    assert values(line)["gpu"] == 40
    assert "cv0" not in values(line)


def test_a_fragmented_memorys_largest_block_is_told_in_kilobytes():
    line = BUSY.replace("(lfb 12x4MB)", "(lfb 3x512kB)")
    assert values(line)["largest free block"] == 0.5


def test_a_rail_without_an_average_is_read():
    assert values("RAM 1/2MB GR3D_FREQ 1% VDD_IN 4744mW")["VDD_IN"] == 4.744


@pytest.mark.parametrize("line", ["", "garbage", "tegrastats: permission denied"])
def test_a_line_of_something_else_says_nothing(line):
    assert parse_line(line) == {}


def fake_program(tmp_path, monkeypatch, body):
    program = tmp_path / "bin" / "tegrastats"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


def test_lines_of_a_running_program_are_handed_on_until_it_is_stopped(tmp_path, monkeypatch):
    body = f'echo "$@" > {tmp_path}/arguments\nwhile true; do echo "{BUSY}"; sleep 0.05; done'
    fake_program(tmp_path, monkeypatch, body)
    heard = []
    source = Tegrastats(lambda when, found: heard.append((when, found)), 20.0)
    wait(lambda: len(heard) > 2)
    source.stop()
    assert heard[0][1]["VDD_IN"].value == 16.321
    assert heard[0][0] <= heard[1][0]
    assert (tmp_path / "arguments").read_text("utf-8").split() == ["--interval", "50"]
    assert source.lost is None


def test_a_program_that_ends_by_itself_is_said_to_be_lost(tmp_path, monkeypatch):
    fake_program(tmp_path, monkeypatch, f'echo "{BUSY}"\nexit 3')
    source = Tegrastats(lambda when, found: None, 20.0)
    wait(lambda: source.lost)
    assert "status 3" in source.lost
    source.stop()


def test_a_missing_program_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="comes with JetPack"):
        Tegrastats(lambda when, found: None, 20.0)
