"""Every import statement of the package against the floors it may stand on.

`runtime` is the ground, `train` < `calibration` < `export` the desktop wing, `jetson` the device
wing; the bundle on disk is the only door between the wings.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from child_programs import LOAD

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("runtime", "train", "calibration", "export", "jetson")
MAY_IMPORT = {
    "runtime": set(),
    "jetson": {"runtime"},
    "train": {"runtime"},
    "calibration": {"runtime", "train"},
    "export": {"runtime", "train", "calibration", "jetson.targets", "jetson.forecast"},
}
DEVICE = ("runtime", "jetson")
DEVICE_BASE = {"numpy", "tokenizers", "click"}
NEVER_ON_DEVICE = {"torch", "onnx", "onnxscript", "safetensors", "lightning", "datasets"}
# Backends and readers of one thing each: imported inside the function that needs them, and named
# by these files alone.
BACKEND_OWNERS = {
    "onnxruntime": ("runtime.engines.",),
    "tensorrt": ("runtime.engines.",),
    "pycuda": ("runtime.gpu.drivers",),
    "cuda": ("runtime.gpu.bindings", "runtime.gpu.compile"),
    "jtop": ("jetson.sensors.jtop_client",),
    "uvicorn": ("runtime.serve.",),
    "prometheus_client": ("runtime.serve.",),
    "matplotlib": ("jetson.report", "runtime.measure.eval_report"),
    "sacrebleu": ("runtime.measure.overlap",),
    "rouge_score": ("runtime.measure.overlap",),
    "nltk": ("runtime.measure.overlap",),
}


@dataclass(frozen=True)
class Import:
    """One imported module as seen from one file."""

    importer: str
    """Dotted name inside the package, for example `runtime.engines.base`."""
    target: str
    """Dotted name: inside the package if `internal`, else of another package."""
    internal: bool
    at_import: bool
    """False inside a function or under `if TYPE_CHECKING`."""
    line: int

    def __str__(self) -> str:
        return f"{self.importer.replace('.', '/')}.py:{self.line} imports {self.target}"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))
}


def is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def statements(node: ast.AST, at_import: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Yields every import under `node`, and whether loading the file executes it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, at_import
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from statements(child, False)
        elif isinstance(child, ast.If) and is_type_checking(child.test):
            for inner in child.body:
                yield from statements(ast.Module([inner], []), False)
            yield from statements(ast.Module(child.orelse, []), at_import)
        else:
            yield from statements(child, at_import)


def imports_of(name: str, path: Path) -> Iterator[Import]:
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node, at_import in statements(ast.parse(path.read_text("utf-8")), True):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, alias.name, False, at_import, node.lineno)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield Import(name, node.module or "", False, at_import, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            base = [part for part in base if part]
            for alias in node.names:
                # `from ..engines import base` names a module, `from ..engines.base import X` not.
                full = ".".join([*base, alias.name])
                target = full if full in MODULES else ".".join(base)
                yield Import(name, target, True, at_import, node.lineno)


IMPORTS = [found for name, path in MODULES.items() for found in imports_of(name, path)]


def inside(module: str, allowed: str) -> bool:
    return module == allowed or module.startswith(allowed + ".")


def offences(wrong) -> str:
    return "\n".join(str(found) for found in IMPORTS if wrong(found))


def test_the_walk_sees_the_package():
    assert {name.split(".")[0] for name in MODULES} == set(FOLDERS)
    assert any(found.internal for found in IMPORTS)


def test_imports_inside_the_package_are_relative():
    assert not offences(
        lambda i: not i.internal and i.target.split(".")[0] in ("dlm_edge", *FOLDERS)
    )


def test_folders_import_only_from_the_floors_below_them():
    def wrong(found: Import) -> bool:
        own = found.importer.split(".")[0]
        allowed = {own, *MAY_IMPORT[own]}
        # The bare root is `__version__`'s home and imports nothing itself.
        return (
            found.internal
            and found.target != ""
            and not any(inside(found.target, a) for a in allowed)
        )

    assert not offences(wrong)


def test_no_file_imports_itself_in_a_circle():
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for found in IMPORTS:
        if found.internal and found.target in MODULES and found.target != found.importer:
            graph[found.importer].add(found.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("import circle: " + " -> ".join(error.args[1]))


def test_device_side_never_names_torch_or_onnx():
    assert not offences(
        lambda i: (
            i.importer.split(".")[0] in DEVICE
            and not i.internal
            and i.target.split(".")[0] in NEVER_ON_DEVICE
        )
    )


def test_device_side_loads_with_its_base_packages_only():
    known = {*sys.stdlib_module_names, *DEVICE_BASE}
    assert not offences(
        lambda i: (
            i.importer.split(".")[0] in DEVICE
            and not i.internal
            and i.at_import
            and i.target.split(".")[0] not in known
        )
    )


@pytest.mark.parametrize("backend", sorted(BACKEND_OWNERS))
def test_backends_are_named_by_their_owners_alone(backend):
    assert not offences(
        lambda i: (
            i.importer.split(".")[0] in DEVICE
            and not i.internal
            and i.target.split(".")[0] == backend
            and not i.importer.startswith(BACKEND_OWNERS[backend])
        )
    )


def family_of(module: str) -> str | None:
    """Gives the family whose folder a module is in: `mdlm` for `train.families.mdlm.family`."""
    parts = module.split(".")
    if len(parts) < 3 or parts[1] != "families":
        return None
    folder = ROOT.joinpath(*parts[:3])
    return parts[2] if folder.is_dir() else None


FAMILIES = {name for module in MODULES if (name := family_of(module))}


def test_only_the_tables_and_the_family_itself_import_from_a_family_folder():
    tables = ("runtime.families.table", "train.families")
    assert not offences(
        lambda i: (
            family_of(i.target) not in (None, family_of(i.importer)) and i.importer not in tables
        )
    )


def docstrings(tree: ast.AST) -> set[int]:
    """Gives the identities of the nodes that are documentation or stand-alone strings."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


@pytest.mark.parametrize("name", [name for name in MODULES if family_of(name) is None])
def test_no_module_outside_a_family_folder_holds_its_name(name):
    tree = ast.parse(MODULES[name].read_text("utf-8"))
    skipped = docstrings(tree)
    found = [
        f"{name}:{node.lineno} {node.value!r}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and id(node) not in skipped and node.value in FAMILIES
    ]
    allowed = {
        "train.checkpoints.architectures": 6,
        "train.cli_options": 1,
        "runtime.families.table": 5,
        "train.families": 5,
    }  # defaults; tables
    assert len(found) <= allowed.get(name, 0), found


@pytest.mark.parametrize("name", MODULES)
def test_no_import_hides_in_a_string(name):
    calls = [
        n for n in ast.walk(ast.parse(MODULES[name].read_text("utf-8"))) if isinstance(n, ast.Call)
    ]
    assert not [c for c in calls if ast.unparse(c.func).endswith(("import_module", "__import__"))]


def test_root_package_is_a_version_and_the_pipeline_which_is_imported_when_asked_for():
    body = ast.parse((ROOT / "__init__.py").read_text("utf-8")).body
    at_once = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {node.module for node in at_once if isinstance(node, ast.ImportFrom)} == {
        "__future__",
        "typing",
    }
    program = LOAD + "assert 'numpy' not in sys.modules; package.Pipeline"
    subprocess.run([sys.executable, "-c", program, str(ROOT)], check=True)


def test_no_root_file_but_setup_would_ship_as_a_module():
    assert [path.name for path in sorted(ROOT.glob("*.py"))] == ["__init__.py", "setup.py"]
