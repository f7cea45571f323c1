"""Finds every member of a TensorRT object that our code touches, by reading the source.

In `runtime/engines/tensorrt*.py` a TensorRT object is always held by a name that stands in HOLDS;
what a call gives back is known from the table of members, so a name that holds anything else than
HOLDS says is found out, too.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

HOLDS = {
    "trt": "module",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "refusal": "ParserError",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "times": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
}


class Walk:
    """One source file."""

    def __init__(self, path: Path, api: dict) -> None:
        self.path, self.api = path, api
        self.tree = ast.parse(path.read_text("utf-8"))

    def type_of(self, node: ast.expr) -> str | None:
        """TensorRT's class of an expression; None: not TensorRT's."""
        match node:
            case ast.Name(id=name):
                return HOLDS.get(name)
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                return HOLDS.get(name.removeprefix("_"))
            case ast.Attribute(value=owner, attr=name) if self.type_of(owner) == "module":
                return f"class {name}" if name in self.api else None
            case ast.Call(func=ast.Attribute(value=owner, attr=name)):
                of = self.type_of(owner)
                if of == "module":
                    return name if name in self.api else None
                if of is not None:
                    return self.api.get(of, {}).get(name, {}).get("gives")
        return None

    def touched(self) -> Iterator[tuple[str, str, int]]:
        """Yields (class, member, line)."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Attribute):
                of = self.type_of(node.value)
                if of is not None and not node.attr.startswith("__"):
                    yield of.removeprefix("class "), node.attr, node.lineno
            if isinstance(node, ast.ClassDef):
                for base in node.bases:
                    of = self.type_of(base)
                    if of is not None:
                        yield from self._overrides(of.removeprefix("class "), node)

    def _overrides(self, of: str, node: ast.ClassDef) -> Iterator[tuple[str, str, int]]:
        for item in node.body:
            if isinstance(item, ast.FunctionDef) and item.name in self.api.get(of, {}):
                yield of, item.name, item.lineno

    def misnamed(self) -> Iterator[str]:
        """Yields assignments of a TensorRT object to a name that does not stand for its class."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Assign):
                of = self.type_of(node.value)
                for target in node.targets:
                    if of not in (None, "module") and not of.startswith("class "):
                        name = ast.unparse(target).removeprefix("self._")
                        if of in HOLDS.values() and HOLDS.get(name) != of:
                            yield f"{self.path.name}:{node.lineno} {name} holds {of}"
