"""A public method is documented once: where it is first declared."""

from __future__ import annotations

import ast
from pathlib import Path

import dlm_edge

ROOT = Path(dlm_edge.__file__).parent
ROOMS = ("runtime", "jetson", "train", "calibration", "export")


def _classes() -> list[tuple[str, ast.ClassDef]]:
    return [
        (f"{path.relative_to(ROOT)}:{node.lineno}", node)
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]


def _bases(node: ast.ClassDef) -> set[str]:
    names = (base.value if isinstance(base, ast.Subscript) else base for base in node.bases)
    return {
        name.id if isinstance(name, ast.Name) else name.attr
        for name in names
        if isinstance(name, ast.Name | ast.Attribute)
    }


def _methods(node: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [m for m in node.body if isinstance(m, ast.FunctionDef | ast.AsyncFunctionDef)]


def _documented(node: ast.ClassDef) -> set[str]:
    return {method.name for method in _methods(node) if ast.get_docstring(method)}


def undocumented(classes: list[tuple[str, ast.ClassDef]]) -> list[str]:
    """Public methods that neither they nor a protocol or base class of theirs document."""
    declared: dict[str, set[str]] = {}
    parents: dict[str, set[str]] = {}
    for _, node in classes:
        declared.setdefault(node.name, set()).update(_documented(node))
        parents.setdefault(node.name, set()).update(_bases(node))
    by_protocol = set().union(
        *(_documented(node) for _, node in classes if "Protocol" in _bases(node))
    )

    def inherited(name: str, seen: set[str]) -> set[str]:
        if name in seen:
            return set()
        seen.add(name)
        above = (inherited(parent, seen) for parent in parents.get(name, ()))
        return declared.get(name, set()).union(*above)

    return [
        f"{place} {node.name}.{method.name}"
        for place, node in classes
        if not node.name.startswith("_")
        for method in _methods(node)
        if not method.name.startswith("_")
        and method.name not in by_protocol | inherited(node.name, set())
    ]


def test_every_public_method_is_documented_by_itself_or_where_it_is_declared() -> None:
    assert undocumented(_classes()) == []


def test_a_method_that_nothing_documents_is_found() -> None:
    source = """
class A:
    def f(self): ...
    def g(self):
        "Documented."
class B(A):
    def g(self): ...
"""
    classes = [("m.py", n) for n in ast.parse(source).body if isinstance(n, ast.ClassDef)]
    assert undocumented(classes) == ["m.py A.f"]
