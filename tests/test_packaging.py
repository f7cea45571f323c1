"""What an install contains: the five folders under `dlm_edge`, and nothing else of the checkout."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("runtime", "train", "calibration", "export", "jetson")
DATA_SUFFIXES = {".cu", ".cuh", ".sh", ".dlm", ".html"}

pytest.importorskip("setuptools", minversion="77")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A wheel and an sdist, built from a copy so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("packaging")
    ignore = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "runs", "__pycache__")
    source = shutil.copytree(ROOT, folder / "source", ignore=ignore)
    for path in (source, *source.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)  # a checkout may be read-only
    code = (
        "from setuptools import build_meta as b;"
        "print(b.build_wheel('../out'), b.build_sdist('../out'))"
    )
    (folder / "out").mkdir()
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return folder / "out"


@pytest.fixture(scope="module")
def wheel_names(built) -> set[str]:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def expected_files() -> set[str]:
    files = {"dlm_edge/__init__.py", "dlm_edge/py.typed"}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix == ".py" or path.suffix in DATA_SUFFIXES:
                files.add(f"dlm_edge/{path.relative_to(ROOT).as_posix()}")
    return files


def test_wheel_is_pure_python_named_for_any_platform(built):
    (wheel,) = built.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")


def test_wheel_holds_exactly_the_modules_and_data_of_the_five_folders(wheel_names):
    package = {name for name in wheel_names if ".dist-info/" not in name}
    assert package == expected_files()


def test_wheel_installs_no_bare_top_level_name(wheel_names):
    assert {name.split("/")[0].split("-")[0] for name in wheel_names} == {"dlm_edge"}


def test_every_command_of_the_wheel_points_at_a_function_that_exists(built, wheel_names):
    (wheel,) = built.glob("*.whl")
    (entry,) = (name for name in wheel_names if name.endswith("entry_points.txt"))
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read(entry).decode().splitlines()
    targets = [line.split(" = ")[1] for line in lines if " = " in line]
    assert targets
    for target in targets:
        module, function = target.split(":")
        path = f"{module.replace('.', '/')}.py"
        assert path in wheel_names
        source = (ROOT / path.removeprefix("dlm_edge/")).read_text("utf-8")
        assert f"def {function}(" in source or f"\n{function} = " in source, target


def test_no_extra_pulls_both_builds_of_onnxruntime(built):
    from email.parser import Parser

    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    requirements = metadata.get_all("Requires-Dist") or []
    for extra in metadata.get_all("Provides-Extra") or []:
        mine = [line for line in requirements if f'extra == "{extra}"' in line]
        assert not (
            any(line.startswith("onnxruntime>") for line in mine)
            and any(line.startswith("onnxruntime-gpu") for line in mine)
        ), extra
    assert not [r for r in requirements if "onnxruntime" in r and "extra ==" not in r]


def test_sdist_builds_the_same_package(built, wheel_names):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    shipped = {n.removeprefix("dlm_edge/") for n in wheel_names if ".dist-info/" not in n}
    assert shipped <= names
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE"} <= names
    # setuptools would add the tests of the top folder, without what they import.
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "docs/"))]
