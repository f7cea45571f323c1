import json
import sys

import pytest
from click.testing import CliRunner
from dlm_edge.jetson.cli.profile import main
from dlm_edge.jetson.doctor import board as doctor_board
from dlm_edge.jetson.doctor.doctor import diagnose, run_command
from dlm_edge.runtime.errors import DeviceError
from dlm_edge.runtime.gpu.facts import GpuFacts
from fake_board import write

PACKAGES = {
    "tensorrt": "10.3.0", "pycuda.driver": "12.6.0", "cuda.bindings": "12.9.9",
    "onnxruntime": "1.23.2",
}  # fmt: skip

MEMINFO = "MemTotal: 7802880 kB\nMemAvailable: {} kB\n"
L4T = "# R36 (release), REVISION: {}, GCID: 1"
CUDA = '{"cuda": {"version": "12.2.1"}}'


def runner(packages):
    """Imports of a board's environment, answered as a process would."""

    def run(command):
        assert command[0] == sys.executable
        module = command[2].split()[1]
        if module not in packages:
            return 1, f"Traceback ...\nModuleNotFoundError: No module named '{module}'"
        return 0, packages[module]

    return run


@pytest.fixture
def driver(monkeypatch):
    gpu = GpuFacts(name="Orin", compute_capability="8.7", driver_version=12060, power_mode="0001")
    monkeypatch.setattr(doctor_board, "read_gpu", lambda: gpu)


@pytest.fixture
def ready_board(board, driver):
    """A board with everything in place."""
    write(board, "usr/local/cuda/lib64/libnvrtc.so.12", "")
    write(board, "dev/nvmap", "")
    write(board, "proc/cmdline", "root=PARTUUID=1 rw cma=950M\n")
    return board


def checks(root, packages=PACKAGES):
    found = diagnose(root, run=runner(packages))
    return found, {check.name: check for check in found.checks}


def test_a_board_with_everything_is_ready(ready_board):
    found, by_name = checks(ready_board)
    assert found.ready
    assert {name for name, check in by_name.items() if check.state in ("warn", "fail")} == set()
    assert by_name["JetPack"].found == "JetPack 6.2.1 (L4T 36.4.7)"
    assert by_name["CUDA toolkit"].found == "12.6"
    assert by_name["power mode"].found == "25W"


def test_what_lacks_is_named_with_the_command_that_mends_it(ready_board):
    (ready_board / "usr/local/cuda/lib64/libnvrtc.so.12").unlink()
    found, by_name = checks(ready_board, {"onnxruntime": "1.23.2"})
    assert not found.ready
    assert by_name["TensorRT"].state == "fail"
    assert "No module named 'tensorrt'" in by_name["TensorRT"].found
    assert "apt install python3-libnvinfer" in by_name["TensorRT"].remedy
    assert by_name["NVRTC"].remedy == "sudo apt install cuda-nvrtc-12-6"
    assert by_name["cuda-bindings"].remedy == "pip install 'cuda-bindings==12.*'"
    assert by_name["pycuda"].state == "warn"


@pytest.mark.parametrize(
    ("name", "file", "text", "state", "remedy"),
    [
        ("NvMap", "proc/cmdline", "root=1 rw", "warn", "cma=950M"),
        ("power mode", "var/lib/nvpmodel/status", "pmode:0000", "warn", "sudo nvpmodel -m 1"),
        ("swap", "proc/meminfo", MEMINFO.format(4612096), "warn", "fallocate"),
        ("free memory", "proc/meminfo", MEMINFO.format(512000), "warn", "multi-user"),
        ("JetPack", "etc/nv_tegra_release", L4T.format("3.0"), "fail", "dist-upgrade"),
        ("CUDA toolkit", "usr/local/cuda/version.json", CUDA, "warn", "cuda-toolkit-12-6"),
    ],
)  # fmt: skip
def test_each_lack_is_found_alone(ready_board, name, file, text, state, remedy):
    write(ready_board, file, text)
    _, by_name = checks(ready_board)
    assert by_name[name].state == state
    assert remedy in by_name[name].remedy


@pytest.mark.parametrize(
    ("line", "state"), [("cma=1G", "ok"), ("cma=950M@2G", "ok"), ("cma=256M", "warn")]
)
def test_the_area_that_nvmap_needs_is_read_with_its_unit(ready_board, line, state):
    write(ready_board, "proc/cmdline", f"root=1 {line} rw")
    assert checks(ready_board)[1]["NvMap"].state == state


def test_a_jetpack_for_other_boards_is_refused(ready_board):
    write(ready_board, "etc/nv_tegra_release", L4T.format("4.0").replace("R36", "R38"))
    assert checks(ready_board)[1]["JetPack"].state == "fail"


def test_nvmaps_limit_came_with_36_4_7(ready_board):
    write(ready_board, "etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 1")
    write(ready_board, "proc/cmdline", "root=1 rw")
    assert checks(ready_board)[1]["NvMap"].state == "ok"


def test_an_unknown_release_is_mended_by_jetpacks_own_package(ready_board):
    write(ready_board, "etc/nv_tegra_release", "# R35 (release), REVISION: 4.1, GCID: 1")
    (ready_board / "usr/local/cuda/version.json").unlink()
    check = checks(ready_board)[1]["CUDA toolkit"]
    assert check.remedy == "sudo apt install nvidia-jetpack"


def test_bindings_of_another_cuda_are_refused(ready_board):
    check = checks(ready_board, PACKAGES | {"cuda.bindings": "13.5.0"})[1]["cuda-bindings"]
    assert (check.state, check.found) == ("fail", "13.5.0")


def test_an_old_tensorrt_is_refused(ready_board):
    assert checks(ready_board, PACKAGES | {"tensorrt": "8.6.2"})[1]["TensorRT"].state == "fail"


def test_a_desktop_at_boot_is_pointed_out(ready_board):
    link = ready_board / "etc/systemd/system/default.target"
    link.parent.mkdir(parents=True)
    link.symlink_to("/lib/systemd/system/graphical.target")
    assert checks(ready_board)[1]["desktop"].state == "warn"


def test_without_a_driver_the_gpu_is_not_ready(ready_board, monkeypatch):
    def no_driver():
        raise DeviceError("no NVIDIA driver here")

    monkeypatch.setattr(doctor_board, "read_gpu", no_driver)
    found, by_name = checks(ready_board)
    assert not found.ready
    assert by_name["GPU driver"].state == "fail"


def test_another_machine_needs_only_the_cpus_engine(tmp_path):
    found, by_name = checks(tmp_path, {"onnxruntime": "1.23.2"})
    assert found.ready
    assert "TensorRT" not in by_name
    assert not checks(tmp_path, {})[0].ready


def test_commands_run_without_a_shell_and_a_missing_one_is_told(tmp_path):
    assert run_command((sys.executable, "-c", "print('$HOME')")) == (0, "$HOME")
    assert run_command(("/no/such/program",))[0] == 127
    assert run_command((str(tmp_path),)) == (127, f"{tmp_path}: Permission denied")


def test_what_a_command_says_is_read_in_any_encoding():
    said = "import sys; sys.stdout.buffer.write(b'\\xe2\\x97\\x8f caf\\xe9')"
    assert run_command((sys.executable, "-c", said)) == (0, "● caf\ufffd")


def test_the_command_prints_a_table_or_json():
    result = CliRunner().invoke(main, ["--doctor"])
    assert result.exit_code == 0, result.output
    assert "ONNX Runtime" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("ready")
    found = json.loads(CliRunner().invoke(main, ["--doctor", "--json"]).stdout)
    assert found["ready"]
    assert {"name", "found", "needed", "state", "remedy"} == found["checks"][0].keys()
