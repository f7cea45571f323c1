"""A board's processor without a board: aarch64 Python and ONNX Runtime under qemu-user.

Speed says nothing here. `make arm` makes the folder and runs these tests.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from child_programs import LOAD
from fake_board import make_board

pytestmark = pytest.mark.arm
ROOT = Path(__file__).resolve().parents[2]
FOLDER = os.environ.get("ARM_ROOT", str(ROOT / ".arm"))
FAMILIES = ("mdlm", "ar", "sedd", "tidar")
BINFMT = Path("/proc/sys/fs/binfmt_misc")
AARCH64_ELF = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
AARCH64_MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
RUN = f"{LOAD}\nfrom dlm_edge.runtime.cli.run import main; main()"
DOCTOR = f"""{LOAD}
import json, platform
from pathlib import Path
from dlm_edge.jetson.doctor.doctor import diagnose

found = diagnose(Path(sys.argv[1]), run=lambda command: (1, 'none'))
checks = [[check.name, check.state] for check in found.checks]
print(json.dumps([platform.machine(), found.machine.model, found.machine.is_jetson, checks]))
"""


@pytest.fixture(scope="session")
def arm(tmp_path_factory):
    """Runs a program on aarch64, and on this machine."""
    script = Path(__file__).with_name("make_root.sh")
    if not Path(FOLDER, "python").exists():
        subprocess.run(["bash", script, FOLDER, sys.executable], check=True)
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}

    def run(
        program: str, *arguments: object, python: str = f"{FOLDER}/python", root: Path = ROOT
    ) -> str:
        command = [python, "-c", program, root, *arguments]
        result = subprocess.run(
            [*map(str, command)], capture_output=True, text=True, env=environment
        )
        assert result.returncode == 0, result.stderr[-2000:]
        return result.stdout

    return run


def test_it_is_another_processor(arm):
    assert arm("import platform; print(platform.machine())").strip() == "aarch64"


def test_the_shipped_model_gives_its_golden_vectors(arm):
    arm(RUN, "--check", "--threads", 1)


def test_the_likeliest_text_is_that_of_this_machine_in_little_memory(arm):
    given = ("Once upon a time", "--max-tokens", 12, "--temperature", 0, "--threads", 1, "--json")
    there = json.loads(arm(RUN, *given))
    here = json.loads(arm(RUN, *given, python=sys.executable))
    assert there["token_ids"] == here["token_ids"]
    assert there["peak_rss_mib"] < 400


@pytest.fixture(scope="session", params=FAMILIES)
def bundle(request, tmp_path_factory):
    pytest.importorskip("torch")
    from family_bundles import make_family_bundle

    return make_family_bundle(tmp_path_factory.mktemp("bundles"), request.param)


def test_a_bundle_of_each_family_gives_its_golden_vectors_and_this_machines_text(arm, bundle):
    given = (RUN, bundle, "ab", "--max-tokens", 6, "--temperature", 0, "--threads", 1, "--json")
    there, here = json.loads(arm(*given)), json.loads(arm(*given, python=sys.executable))
    assert there["token_ids"] == here["token_ids"]
    arm(RUN, bundle, "--check", "--threads", 1)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    copy = shutil.copytree(ROOT, folder / "copy", ignore=shutil.ignore_patterns(".*", "tests"))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", folder, copy], check=True)
    (made,) = folder.glob("*.whl")
    return made


def test_the_wheel_runs_from_where_it_is_unpacked(arm, wheel, tmp_path):
    shutil.unpack_archive(wheel, tmp_path / "installed", "zip")
    said = arm(RUN, "--info", root=tmp_path / "installed" / "dlm_edge")
    assert "stories-4m.dlm" in said


@pytest.fixture
def kernel_runs_arm():
    """Has the kernel start aarch64 programs by qemu: setup.sh starts those of its environment."""
    entry = BINFMT / "qemu-aarch64"
    if not BINFMT.exists() or os.geteuid() != 0:
        pytest.skip("needs root and a kernel with binfmt_misc")
    mounted = (BINFMT / "register").exists()
    if not mounted:
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT], check=True)
    known = entry.exists()
    if not known:
        qemu = f"{FOLDER}/qemu/usr/bin/qemu-aarch64-static"
        line = f":qemu-aarch64:M::{AARCH64_ELF}:{AARCH64_MASK}:{qemu}:F"
        (BINFMT / "register").write_text(line, "ascii")
    yield
    if not known:
        entry.write_text("-1", "ascii")
    if not mounted:
        subprocess.run(["umount", BINFMT], check=True)


def test_setup_sh_makes_an_environment_that_writes(arm, wheel, kernel_runs_arm, tmp_path):
    versions = tmp_path / "constraints.txt"
    names = (Path(name).name.split("-")[:2] for name in Path(FOLDER, "wheels").glob("*.whl"))
    versions.write_text("".join(f"{name}=={version}\n" for name, version in names), "utf-8")
    root = f"{FOLDER}/root"
    command = ["bash", ROOT / "jetson" / "setup.sh", "--cpu", "--wheel", wheel]
    command += ["--venv", tmp_path / "venv", "--python", f"{root}/usr/bin/python3.11"]
    environment = {
        **os.environ,
        "QEMU_LD_PREFIX": root,
        "PIP_CONSTRAINT": str(versions),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "\nready\n" in result.stdout
    assert "\nOnce upon a time" in result.stdout
    assert "WARNING" not in result.stdout


@pytest.mark.parametrize("bundle", ["mdlm"], indirect=True)
def test_a_boards_report_has_its_own_processor(arm, bundle, tmp_path):
    arm(RUN, bundle, "--board-report", tmp_path / "board.json", "--threads", 1)
    report = json.loads((tmp_path / "board.json").read_text("utf-8"))
    assert report["ok"], report
    assert "aarch64" in json.dumps(report)


def test_the_doctor_reads_a_recorded_board(arm, tmp_path):
    machine, model, is_jetson, checks = json.loads(arm(DOCTOR, make_board(tmp_path)))
    assert machine == "aarch64"
    assert "Orin Nano" in model
    assert is_jetson
    states = dict(checks)
    assert (states["JetPack"], states["power sensors"], states["swap"]) == ("ok", "ok", "ok")
    assert states["TensorRT"] == "fail"
