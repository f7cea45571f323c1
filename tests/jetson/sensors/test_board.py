import pytest
from dlm_edge.jetson.sensors.board import read_machine, release_at_least, target_of
from dlm_edge.jetson.sensors.power import (
    current_mode,
    find_mode,
    list_modes,
    mode_command,
    set_mode,
)
from dlm_edge.jetson.targets import TARGETS
from dlm_edge.runtime.errors import ConfigError, DeviceError
from dlm_edge.runtime.measure.machine import read_l4t
from fake_board import write


def test_a_board_is_known_by_its_model_and_memory(board):
    machine = read_machine(board)
    assert machine.is_jetson
    assert machine.model.endswith("Developer Kit Super")
    assert machine.target == "orin-nano"
    assert machine.memory_mib == pytest.approx(7620)
    assert machine.power_mode == "25W"


@pytest.mark.parametrize(
    ("model", "memory", "target"),
    [
        ("NVIDIA Jetson Orin Nano Developer Kit", 7620, "orin-nano"),
        ("NVIDIA Jetson Orin Nano Developer Kit", 7486, "orin-nano"),
        ("NVIDIA Jetson Orin Nano Developer Kit", 3760, "orin-nano-4gb"),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", 15656, "orin-nx"),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", 7620, "orin-nx-8gb"),
        ("NVIDIA Jetson AGX Orin Developer Kit", 62841, "agx-orin"),
        ("NVIDIA Jetson AGX Orin", 30697, "agx-orin-32gb"),
        ("Raspberry Pi 5", 8000, "host"),
    ],
)
def test_every_model_has_its_target(model, memory, target):
    assert target_of(model, memory) == target
    assert target in TARGETS


def test_the_modules_part_number_decides_before_the_memory(board):
    tree = "nvidia,p3768-0000+p3767-0004-super\0nvidia,p3767-0004\0nvidia,tegra234\0"
    write(board, "proc/device-tree/compatible", tree)
    assert read_machine(board).target == "orin-nano-4gb"


def test_another_machine_is_the_host(tmp_path):
    machine = read_machine(tmp_path)
    assert not machine.is_jetson
    assert machine.target == "host"
    assert machine.power_mode is None


def test_jetpack_7s_release_is_read(board):
    write(board, "etc/nv_tegra_release", "# R39 (release), REVISION: 2.1, GCID: 46758480\n")
    assert read_l4t(board) == "39.2.1"
    assert read_machine(board).jetpack == "7.2.1"


def test_releases_compare_by_number():
    assert release_at_least("36.4.7", "36.4.7")
    assert release_at_least("36.10.0", "36.4.7")
    assert not release_at_least("36.4.3", "36.4.7")


def test_modes_come_from_the_boards_own_table(board):
    assert [(mode.number, mode.name) for mode in list_modes(board)] == [
        (0, "15W"), (1, "25W"), (2, "MAXN_SUPER"),
    ]  # fmt: skip
    assert current_mode(board).name == "25W"


@pytest.mark.parametrize("wanted", ["maxn-super", "MAXN_SUPER", "2"])
def test_a_mode_is_found_by_name_or_number(board, wanted):
    assert mode_command(find_mode(board, wanted)) == ("sudo", "-n", "nvpmodel", "-m", "2")


def test_an_unknown_mode_lists_the_boards(board):
    with pytest.raises(ConfigError, match=r"15W \(0\), 25W \(1\), MAXN_SUPER \(2\)"):
        find_mode(board, "7W")


def test_a_machine_without_modes_refuses_one(tmp_path):
    with pytest.raises(ConfigError, match="no power modes"):
        find_mode(tmp_path, "25W")


def programs(tmp_path, monkeypatch, nvpmodel):
    """A sudo that runs what it is given, and an nvpmodel."""
    folder = tmp_path / "bin"
    for name, body in (("sudo", 'shift\nexec "$@"'), ("nvpmodel", nvpmodel)):
        write(folder, name, f"#!/bin/sh\n{body}\n").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_mode_is_set_through_nvpmodel(board, tmp_path, monkeypatch):
    status = board / "var/lib/nvpmodel/status"
    programs(tmp_path, monkeypatch, f'echo "pmode:000$2 fmode:quiet" > {status}')
    set_mode(board, find_mode(board, "MAXN_SUPER"))
    assert current_mode(board).name == "MAXN_SUPER"


@pytest.mark.parametrize(
    "nvpmodel", ["echo no rights >&2; exit 1", "read answer; echo reboot needed: $answer"]
)
def test_a_refusal_and_a_mode_that_needs_a_reboot_are_said(board, tmp_path, monkeypatch, nvpmodel):
    programs(tmp_path, monkeypatch, nvpmodel)
    with pytest.raises(DeviceError, match=r"no rights|reboot needed: NO"):
        set_mode(board, find_mode(board, "15W"))
    assert current_mode(board).name == "25W"
