"""Where the values of a graph come from: whose memory a view shows, which weights a constant is
made of, who reads a value. Knows no costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .onnx_graph import Graph, Node
from .shapes import Value

VIEWS = frozenset(("Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten"))
"""Operators that show another value's memory in another shape."""


class Origins:
    """Where values come from: which value a view shows, which weights a constant is made of."""

    def __init__(self, graph: Graph, values: Mapping[str, Value]) -> None:
        self.values = values
        self.makers = {out: node for node in graph.nodes for out in node.outputs}
        self.inputs = {port.name for port in graph.inputs}
        self.outputs = {self.source(port.name) for port in graph.outputs}
        self.readers: dict[str, list[int]] = {}
        for node in graph.nodes:
            if node.op not in VIEWS:
                for name in node.inputs:
                    self.readers.setdefault(self.source(name), []).append(id(node))
        self._roots: dict[str, frozenset[str]] = {}

    def source(self, name: str) -> str:
        """The value whose memory this one shares."""
        while name in self.makers and self.makers[name].op in VIEWS:
            name = self.makers[name].inputs[0]
        return name

    def roots(self, name: str) -> frozenset[str]:
        """Initialisers that a constant is computed from."""
        if name not in self._roots:
            maker = self.makers.get(name)
            if maker is None or maker.op == "Shape":
                stored = self.values[name].stored
                self._roots[name] = frozenset((name,)) if stored else frozenset()
            else:
                inputs = (item for item in maker.inputs if item)
                self._roots[name] = frozenset().union(*(self.roots(item) for item in inputs))
        return self._roots[name]

    def constants(self, node: Node) -> Iterable[str]:
        """The constant inputs of a node that is executed; shapes and axes are none."""
        for place, name in enumerate(node.inputs):
            if name and self.values[name].constant and not is_parameter(node, place):
                yield name

    def stored(self, run: Iterable[Node]) -> set[str]:
        """Initialisers that the executed nodes read."""
        return {root for node in run for name in self.constants(node) for root in self.roots(name)}

    def folded(self, run: Iterable[Node]) -> set[str]:
        """Constants as the executed nodes read them."""
        return {name for node in run for name in self.constants(node)}

    def weight_bytes(self, run: Iterable[Node]) -> int:
        """Bytes of weights that one run reads."""
        whole: set[str] = set()
        rows = 0
        for node in run:
            for name in self.constants(node):
                if node.op == "Gather" and name == node.inputs[0]:
                    rows += self.values[node.outputs[0]].nbytes
                else:
                    whole |= self.roots(name)
        return rows + sum(self.values[name].nbytes for name in whole)

    def factor_dtype(self, node: Node) -> str:
        """What a product multiplies: int8 where both factors were dequantised from it."""
        if node.op == "MatMulNBits":
            return "int8"
        kinds = []
        for name in node.inputs[:2]:
            source = self.source(name)
            maker = self.makers.get(source)
            while maker is not None and maker.op == "Transpose":
                source = self.source(maker.inputs[0])
                maker = self.makers.get(source)
            if maker is not None and maker.op == "DequantizeLinear":
                kinds.append(self.values[maker.inputs[0]].dtype)
            else:
                kinds.append(self.values[name].dtype)
        if {"int8", "uint8"}.issuperset(kinds):
            return "int8"
        return kinds[0] if len(set(kinds)) == 1 else self.values[node.inputs[0]].dtype


_SHAPED_BY = frozenset(
    """
    CumSum Clip Expand OneHot Pad Reshape Slice Split Squeeze Tile TopK Trilu Unsqueeze
    """.split()  # noqa: SIM905
)
"""Operators whose further inputs say how, not what."""


def is_parameter(node: Node, place: int) -> bool:
    """Whether an input says how, not what: axes, shapes, ranges."""
    if node.op in ("Range", "ConstantOfShape"):
        return True
    return place > 0 and (node.op in _SHAPED_BY or node.op.startswith("Reduce"))
