"""The device side without the desktop's packages, and on the oldest Python it promises."""

import ast
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DEVICE_FILES = sorted(
    path for name in ("runtime", "jetson") for path in (ROOT / name).rglob("*.py")
)
DEVICE_MODULES = sorted(
    ".".join(["dlm_edge", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
    for path in DEVICE_FILES
)

# Run in a process of its own: blocks every installed package that the base install does not
# bring, then loads the checkout as `dlm_edge` and imports every module of the device side.
IMPORT_ALL = r"""
import importlib, importlib.abc, importlib.util, re, sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

root, modules = sys.argv[1], sys.argv[2].split(",")

def norm(name):
    return re.split(r"[^A-Za-z0-9._-]", name)[0].lower().replace("_", "-")

base, waiting = set(), ["numpy", "tokenizers", "click"]
while waiting:
    name = norm(waiting.pop())
    if name in base:
        continue
    base.add(name)
    try:
        waiting += [r for r in requires(name) or [] if "extra ==" not in r]
    except PackageNotFoundError:
        pass

always = {"torch", "onnx", "onnxruntime", "tensorrt", "pycuda", "cuda"}
blocked = always | {top for top, dists in packages_distributions().items()
                    if not any(norm(dist) in base for dist in dists)}

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked - {"dlm_edge"}:
            raise ModuleNotFoundError("blocked: " + name)
        return None

sys.meta_path.insert(0, Block())
spec = importlib.util.spec_from_file_location(
    "dlm_edge", root + "/__init__.py", submodule_search_locations=[root])
package = importlib.util.module_from_spec(spec)
sys.modules["dlm_edge"] = package
spec.loader.exec_module(package)
for name in modules:
    importlib.import_module(name)
print(len(modules))
"""


def run(python: str, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [python, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def import_all(python: str) -> subprocess.CompletedProcess[str]:
    return run(python, IMPORT_ALL, str(ROOT), ",".join(DEVICE_MODULES))


@cache
def real_python310() -> str | None:
    """A Python 3.10 that starts: this one, one on the path, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [sys.executable, shutil.which("python3.10")]
    found += [str(path) for path in sorted(pyenv.glob("versions/3.10*/bin/python3.10"))]
    for python in found:
        if (
            python
            and run(python, "import sys; sys.exit(sys.version_info[:2] != (3, 10))").returncode == 0
        ):
            return python
    return None


def test_every_device_module_imports_where_all_but_the_base_packages_are_blocked():
    result = import_all(sys.executable)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == len(DEVICE_MODULES)


def test_the_block_would_notice_torch():
    pytest.importorskip("torch")
    result = run(sys.executable, IMPORT_ALL, str(ROOT), "torch")
    assert result.returncode != 0
    assert "blocked: torch" in result.stderr


@pytest.mark.parametrize("path", DEVICE_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_device_file_parses_as_python_310(path):
    ast.parse(path.read_text("utf-8"), feature_version=(3, 10))


def test_device_files_compile_under_a_real_python_310():
    python = real_python310()
    if python is None:
        pytest.skip("no Python 3.10 here; the syntax was checked by ast alone")
    code = (
        "import sys; [compile(open(p, encoding='utf-8').read(), p, 'exec') for p in sys.argv[1:]]"
    )
    result = run(python, code, *map(str, DEVICE_FILES))
    assert result.returncode == 0, result.stderr


def test_device_modules_import_under_a_real_python_310():
    python = real_python310()
    if python is None:
        pytest.skip("no Python 3.10 here")
    if run(python, "import numpy, tokenizers, click").returncode != 0:
        pytest.skip(f"{python} lacks numpy, tokenizers or click")
    result = import_all(python)
    assert result.returncode == 0, result.stderr
