"""The real pycuda and cuda-bindings, where they are installed, on a driver that is a stand-in in C.

So names, order and types of arguments, results and life times are theirs, and what must not happen
while a stream is captured is refused.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from emulation.device import COMPILER, build_folder
from toy_bundle import write_toy

TESTS = Path(__file__).resolve().parents[2]
SOURCE = TESTS / "emulation" / "libcuda.cpp"


def unresolved(package):
    """Gives what an extension wants of libcuda: every name must be there when it is loaded."""
    (folder,) = importlib.util.find_spec(package).submodule_search_locations
    wanted = set()
    for library in Path(folder).glob("_driver*.so"):
        listing = subprocess.run(
            ["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True
        ).stdout
        wanted |= {word for word in listing.split() if word.startswith("cu")}
    return wanted


def build_driver(folder, package):
    """Compiles the stand-in, with a refusal in the place of each function that we never call."""
    text = SOURCE.read_text("utf-8")
    rest = [name for name in sorted(unresolved(package)) if f"API {name}(" not in text]
    whole = folder / "libcuda.cpp"
    whole.write_text(text + "".join(f"API {name}() {{ return NOT_SUPPORTED; }}\n" for name in rest))
    library = folder / "libcuda.so.1"
    subprocess.run(
        [COMPILER, "-std=c++17", "-O1", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", str(whole),
         "-o", str(library), "-ldl"],
        check=True,
    )  # fmt: skip
    return library


def installed(package):
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # its parent
        return False


@pytest.mark.parametrize(
    ("binding", "package", "driver", "remedy"),
    [
        ("cuda-bindings", "cuda.bindings", "BindingsDriver", "pip install cuda-bindings"),
        ("pycuda", "pycuda", "PycudaDriver", "docs/board.md builds it"),
    ],
)
@pytest.mark.parametrize("end", ["closed", "open"])
def test_the_device_loop_through_a_real_binding_gives_the_tokens_of_the_cpu(
    binding, package, driver, remedy, end, tmp_path
):
    if not installed("cuda.bindings") or not installed(package):
        pytest.skip(f"no {binding} here: {remedy}")
    if shutil.which(COMPILER) is None:
        pytest.skip(f"no {COMPILER} here to compile the stand-in with")
    library = build_driver(tmp_path, package)
    build_folder()  # of this process: kernels compiled before serve again
    environment = {**os.environ, "LD_PRELOAD": str(library), "LD_LIBRARY_PATH": str(tmp_path),
                   "CUDA_STAND_IN_END": end}  # fmt: skip
    done = subprocess.run(
        [sys.executable, TESTS / "emulation" / "real_bindings.py", TESTS.parent, binding,
         write_toy(tmp_path)],
        env=environment, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "PyCUDA" not in done.stderr
    assert "while a stream is captured" not in done.stderr
    found = json.loads(done.stdout)
    assert found["binding"] == driver
    assert (found["name"], found["capability"]) == ("Orin (nvgpu)", [8, 7])
    assert found["memory"] == [1 << 30, 1 << 33]
    assert "no 1048576.0 MiB left in one piece" in found["too much"]
    assert found["captures"]
    assert 0 < found["captured"] < found["replayed"]
    assert found["kernels"] == []
    assert found["equal"]
    assert (found["left"] == 0) == (end == "closed")
