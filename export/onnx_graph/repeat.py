"""A stack of equal layers: the first few are traced, and the graph gets the others by repetition.

torch.export takes about 2 s per layer, whatever its size. The first `SAMPLE` layers are traced; the
nodes of the second and the third must be the same but for weights, for what they read of the layer
before them, and for integers that grow from layer to layer (the place in a cache). The layers
between the third and the last are copies of the third, the fourth becomes the last. What collects
one value per layer, as the new rows of a cache, collects those of the copies too. A stack that does
not look like that is traced as a whole.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import DeduplicateInitializersPass
from torch import nn

from ...calibration.graphs import array_of, constant
from ...train.families.base import ExportGraph, GraphTensor

SAMPLE = 4
"""Layers that are traced."""
SMALL_ITEMS = 1 << 14
"""Weights up to this size may be copied or merged by the exporter; they are known by their values,
larger ones by their address."""


class _UnlikeError(Exception):
    """The layers' nodes are not repetitions of each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Equal layers of a module."""

    path: str
    """Name of the list of layers."""
    parent: nn.Module
    """Module that the list belongs to."""
    layers: nn.ModuleList

    def weights(self, number: int) -> dict[str, np.ndarray]:
        """Returns the weights of a layer by name within it."""
        named = self.layers[number].named_parameters()
        return {name: tensor.detach().numpy() for name, tensor in named}


def find_stack(module: nn.Module) -> Stack | None:
    """Returns the module's one stack of more than SAMPLE equal layers; None if there is none."""
    found = []
    for path, layers in module.named_modules():
        if isinstance(layers, nn.ModuleList) and len(layers) > SAMPLE and _are_equal(layers):
            parent = module.get_submodule(path.rpartition(".")[0])
            found.append(Stack(path=path, parent=parent, layers=layers))
    return found[0] if len(found) == 1 else None


def _are_equal(layers: nn.ModuleList) -> bool:
    forms = {
        (repr(layer), tuple((name, item.shape) for name, item in layer.named_parameters()))
        for layer in layers
    }
    parameters = [item for layer in layers for item in layer.parameters()]
    return len(forms) == 1 and len({item.data_ptr() for item in parameters}) == len(parameters)


@contextmanager
def shortened(stack: Stack) -> Iterator[Mapping[int, Mapping[str, np.ndarray]]]:
    """Leaves only the first SAMPLE layers in the module meanwhile, with random small weights, of
    which no two are equal; gives the weights of these layers as they are then."""
    attribute = stack.path.rpartition(".")[2]
    sample = nn.ModuleList(list(stack.layers)[:SAMPLE])
    small = [item for item in sample.parameters() if item.numel() <= SMALL_ITEMS]
    values = [item.data for item in small]
    generator = torch.Generator().manual_seed(0)
    setattr(stack.parent, attribute, sample)
    try:
        for item in small:
            item.data = torch.randn(item.shape, generator=generator)
        yield {number: stack.weights(number) for number in range(SAMPLE)}
    finally:
        for item, value in zip(small, values, strict=True):
            item.data = value
        setattr(stack.parent, attribute, stack.layers)


def of_sample(graph: ExportGraph) -> ExportGraph:
    """Returns a graph without the inputs and outputs of layers that are not traced."""

    def kept(tensors: Sequence[GraphTensor]) -> tuple[GraphTensor, ...]:
        return tuple(item for item in tensors if item.layer is None or item.layer < SAMPLE)

    return replace(graph, inputs=kept(graph.inputs), outputs=kept(graph.outputs))


def repeat(
    model: ir.Model,
    graph: ExportGraph,
    stack: Stack,
    traced: Mapping[int, Mapping[str, np.ndarray]],
) -> bool:
    """Makes the graph of a shortened stack that of the whole one, in place.

    Args:
        model: `of_sample(graph)`, traced within `shortened`, which is over.
        graph: The whole graph.
        traced: What `shortened` gave.

    Returns:
        False if the layers are not repetitions of each other: the graph is of no use then.
    """
    try:
        _Repetition(model, graph, stack, traced).run()
    except _UnlikeError:
        return False
    DeduplicateInitializersPass()(model)
    return True


@dataclass(frozen=True, slots=True)
class _Weight:
    """An initialiser that holds a layer's weight, or an input of a layer."""

    layer: int
    name: str
    turned: bool = False
    is_input: bool = False


class _Repetition:
    def __init__(
        self,
        model: ir.Model,
        graph: ExportGraph,
        stack: Stack,
        traced: Mapping[int, Mapping[str, np.ndarray]],
    ) -> None:
        self._graph, self._stack, self._whole = model.graph, stack, graph
        self._nodes = list(model.graph)
        self._places = {
            value: (place, number)
            for place, node in enumerate(self._nodes)
            for number, value in enumerate(node.outputs)
        }
        self._weights = self._find_weights(traced) | self._find_inputs()
        self._inputs = {str(value.name): value for value in model.graph.inputs}
        starts = [self._first_reader(layer) for layer in (1, 2, 3)]
        self._start, self._period = starts[1], starts[1] - starts[0]
        if starts[2] - starts[1] != self._period:
            raise _UnlikeError

    def _find_weights(
        self, traced: Mapping[int, Mapping[str, np.ndarray]]
    ) -> dict[ir.Value, _Weight]:
        """Tells which initialiser holds which weight."""
        places = {}
        values = {}
        for layer, weights in traced.items():
            for name, array in weights.items():
                places[array.ctypes.data] = (layer, name, array)
                if array.size <= SMALL_ITEMS:
                    for turned in (False, True):
                        key = _key(array.T if turned else array)
                        values.setdefault(key, _Weight(layer, name, turned))
        found = {}
        for value in self._graph.initializers.values():
            array = array_of(value)
            layer, name, known = places.get(array.ctypes.data, (0, "", None))
            if known is not None and known.size == array.size > 1:
                same, turned = _same_view(array, known), _same_view(array, known.T)
                if not same and not turned:
                    raise _UnlikeError
                found[value] = _Weight(layer, name, not same)
            elif array.size <= SMALL_ITEMS and array.dtype.kind == "f":
                weight = values.get(_key(array))
                if weight is not None:
                    found[value] = weight
        return found

    def _find_inputs(self) -> dict[ir.Value, _Weight]:
        """Tells which input belongs to which layer."""
        values = {value.name: value for value in self._graph.inputs}
        return {
            values[item.name]: _Weight(item.layer, _stem(item), is_input=True)
            for item in self._whole.inputs
            if item.layer is not None and item.name in values
        }

    def _first_reader(self, layer: int) -> int:
        """Returns the place of the first node that reads a layer's weights; sizes of its inputs may
        be read before the first layer."""
        for place, node in enumerate(self._nodes):
            for value in node.inputs:
                weight = self._weights.get(value) if value is not None else None
                if weight is not None and weight.layer == layer and not weight.is_input:
                    return place
        raise _UnlikeError

    def run(self) -> None:
        """Checks the second and third layer against each other, and copies."""
        count = len(self._stack.layers)
        for value, weight in self._weights.items():
            last = weight.layer == SAMPLE - 1
            self._bind(value, weight, count - 1 if last else weight.layer)
        third = self._nodes[self._start : self._start + self._period]
        steps = [self._compare(node, self._start + number) for number, node in enumerate(third)]
        copies: list[dict[ir.Value, ir.Value]] = []
        known = {value: value for node in third for value in node.outputs}
        end = self._nodes[self._start + self._period]
        for layer in range(3, count - 1):
            before = copies[-1] if copies else known
            copies.append(self._copy(third, steps, before, layer, end))
        self._follow(steps, copies)
        self._order(copies)

    def _order(self, copies: Sequence[Mapping[ir.Value, ir.Value]]) -> None:
        """Gives the graph the inputs and outputs of the whole one, in their order."""
        last = len(self._stack.layers) - 1
        values = {value.name: value for value in self._graph.outputs}
        outputs = []
        for item in self._whole.outputs:
            if item.layer is None or item.layer < SAMPLE - 1:
                outputs.append(values[item.name])
                continue
            third = values[f"{_stem(item)}.{SAMPLE - 2}"]
            if item.layer == last:
                value = values[f"{_stem(item)}.{SAMPLE - 1}"]
            elif third in copies[0]:
                value = copies[item.layer - SAMPLE + 1][third]
            else:
                raise _UnlikeError
            value.type, value.shape = third.type, third.shape
            outputs.append(value)
        for item, value in reversed(list(zip(self._whole.outputs, outputs, strict=True))):
            value.name = item.name
        self._graph.outputs.clear()
        self._graph.outputs.extend(outputs)
        self._graph.inputs.clear()
        self._graph.inputs.extend(self._inputs[item.name] for item in self._whole.inputs)

    def _before(self, value: ir.Value) -> ir.Value | None:
        """Returns what corresponds in the layer before to a value of the third or second layer;
        None for any other value."""
        found = self._places.get(value)
        if found is None or abs(found[0] - self._start + 0.5) > self._period:
            return None
        return self._nodes[found[0] - self._period].outputs[found[1]]

    def _compare(self, node: ir.Node, place: int) -> list[np.ndarray | None]:
        """Holds a node of the third layer to that of the second; returns by how much its constants
        grow, None for other inputs and equal constants."""
        other = self._nodes[place - self._period]
        if not _alike(node, other):
            raise _UnlikeError
        steps: list[np.ndarray | None] = []
        for mine, theirs in zip(node.inputs, other.inputs, strict=True):
            steps.append(None)
            if mine is None or theirs is None:
                if mine is not theirs:
                    raise _UnlikeError
                continue
            mine_weight, their_weight = self._weights.get(mine), self._weights.get(theirs)
            if mine_weight is not None and their_weight is not None:
                if mine_weight.layer != 2 or their_weight != replace(mine_weight, layer=1):
                    raise _UnlikeError
            elif (before := self._before(mine)) is not None:
                if before is not theirs:
                    raise _UnlikeError
            elif mine is not theirs:
                steps[-1] = _growth(mine, theirs)
        return steps

    def _copy(
        self,
        third: Sequence[ir.Node],
        steps: Sequence[Sequence[np.ndarray | None]],
        before: Mapping[ir.Value, ir.Value],
        layer: int,
        end: ir.Node,
    ) -> dict[ir.Value, ir.Value]:
        """Adds a copy of the third layer in front of a node; returns its values by the third's.

        Args:
            before: The same of the layer before.
        """
        made: dict[ir.Value, ir.Value] = {}

        def replaced(value: ir.Value | None, step: np.ndarray | None) -> ir.Value | None:
            if value is None:
                return None
            if value in self._weights:
                return self._weight(self._weights[value], layer)
            if step is not None:
                return self._grown(value, step, layer - 2)
            if value in made:
                return made[value]
            found = self._places.get(value)
            if found is not None and self._start - self._period <= found[0] < self._start:
                return before[self._nodes[found[0] + self._period].outputs[found[1]]]
            return value

        for node, grows in zip(third, steps, strict=True):
            pairs = zip(node.inputs, grows, strict=True)
            self._add(node, [replaced(*pair) for pair in pairs], layer, made, end)
        return made

    def _add(
        self,
        node: ir.Node,
        inputs: Sequence[ir.Value | None],
        layer: int,
        made: dict[ir.Value, ir.Value],
        end: ir.Node,
    ) -> None:
        """Adds a copy of a node in front of another."""
        outputs = [ir.Value(name=f"{value.name}.{layer}") for value in node.outputs]
        name = outputs[0].name
        copy = ir.Node(
            node.domain, node.op_type, inputs, node.attributes.values(), outputs=outputs, name=name
        )
        self._graph.insert_before(end, copy)
        made.update(zip(node.outputs, outputs, strict=True))

    def _follow(
        self,
        steps: Sequence[Sequence[np.ndarray | None]],
        copies: Sequence[dict[ir.Value, ir.Value]],
    ) -> None:
        """Has what follows the copies read them: the last layer, and what collects from all."""
        start, end = self._start, self._start + self._period
        second = self._nodes[start - self._period : start]
        pairs = zip(second, self._nodes[start:end], strict=True)
        third_of = {
            mine: theirs
            for node, other in pairs
            for mine, theirs in zip(node.outputs, other.outputs, strict=True)
        }
        waiting: dict[ir.Node, list[ir.Value | None]] = {}
        in_last = True
        for place, node in enumerate(self._nodes[end:], end):
            inputs = list(node.inputs)
            wanted = [third_of.get(value, value) if value else None for value in inputs]
            if any(value in third_of for value in inputs):
                in_last = False
                if node.op_type == "Concat":
                    self._collect(node, third_of, copies)
                else:
                    waiting[node] = wanted
                continue
            partner = self._partner(node, waiting)
            if partner is not None:
                del waiting[partner]
                for layer, made in enumerate(copies, SAMPLE - 1):
                    given = [made.get(value, value) if value else None for value in inputs]
                    self._add(node, given, layer, made, self._nodes[place + 1])
                third_of.update(zip(partner.outputs, node.outputs, strict=True))
            elif in_last:
                grows = self._grows(node, place, steps)
                self._join(node, grows, copies[-1])
            elif any(value in copies[-1] for value in inputs):
                raise _UnlikeError
        if waiting:
            raise _UnlikeError

    def _partner(
        self, node: ir.Node, waiting: Mapping[ir.Node, Sequence[ir.Value | None]]
    ) -> ir.Node | None:
        """Returns the node that does with the second layer what this one does with the third."""
        for other, wanted in waiting.items():
            if _alike(node, other) and all(map(operator.is_, wanted, node.inputs)):
                return other
        return None

    def _grows(
        self, node: ir.Node, place: int, steps: Sequence[Sequence[np.ndarray | None]]
    ) -> Sequence[np.ndarray | None]:
        """Returns by how much the constants of a node of the last layer grow."""
        offset = place - self._start - self._period
        before = self._nodes[place - self._period]
        if offset >= self._period or not _alike(node, before):
            return ()
        for mine, theirs, step in zip(node.inputs, before.inputs, steps[offset], strict=True):
            if step is None:
                continue
            if mine is None or theirs is None or not mine.is_initializer():
                raise _UnlikeError
            if not np.array_equal(array_of(mine), array_of(theirs) + step):
                raise _UnlikeError
        return steps[offset]

    def _collect(
        self,
        node: ir.Node,
        third_of: Mapping[ir.Value, ir.Value],
        copies: Sequence[Mapping[ir.Value, ir.Value]],
    ) -> None:
        """Adds the copies' values to a list of one value per layer."""
        inputs = list(node.inputs)
        wider: list[ir.Value | None] = []
        for before, value in zip([None, *inputs], inputs, strict=False):
            wider.append(value)
            if before is not None and before in third_of:
                if value is None or third_of[before] is not value:
                    raise _UnlikeError
                wider += [made[value] for made in copies]
        made = ir.Node(
            node.domain, node.op_type, wider, node.attributes.values(), num_outputs=1,
            name=node.name,
        )  # fmt: skip
        ir.convenience.replace_nodes_and_values(
            self._graph, node, [node], [made], node.outputs, made.outputs
        )

    def _join(
        self,
        node: ir.Node,
        grows: Sequence[np.ndarray | None],
        last: Mapping[ir.Value, ir.Value],
    ) -> None:
        """Has a node of the last layer read the last copy."""
        for place, value in enumerate(node.inputs):
            if value is None:
                continue
            if value in last:
                node.replace_input_with(place, last[value])
            elif place < len(grows) and (step := grows[place]) is not None:
                node.replace_input_with(
                    place, self._grown(value, step, len(self._stack.layers) - SAMPLE)
                )

    def _grown(self, value: ir.Value, step: np.ndarray, times: int) -> ir.Value:
        """Returns a constant that has grown with the layers."""
        array = array_of(value) + times * step
        return constant(self._graph, f"{value.name}.{times}", array.astype(step.dtype))

    def _weight(self, weight: _Weight, layer: int) -> ir.Value:
        """Returns a layer's weight in the form that the third layer's has."""
        if weight.is_input:
            name = f"{weight.name}.{layer}"
            if name not in self._inputs:
                third = self._inputs[f"{weight.name}.{SAMPLE - 2}"]
                self._inputs[name] = ir.Value(name=name, type=third.type, shape=third.shape)
            return self._inputs[name]
        name, array = self._content(weight, layer)
        return constant(self._graph, name, array)

    def _bind(self, value: ir.Value, weight: _Weight, layer: int) -> None:
        """Gives an initialiser a layer's weight and the name of it, an input its name."""
        if weight.is_input:
            del self._inputs[str(value.name)]
            value.name = f"{weight.name}.{layer}"
            self._inputs[value.name] = value
            return
        name, array = self._content(weight, layer)
        if self._graph.initializers.get(name) not in (None, value):
            raise _UnlikeError
        value.name = name
        value.const_value = ir.tensor(array, name=name)

    def _content(self, weight: _Weight, layer: int) -> tuple[str, np.ndarray]:
        array = self._stack.weights(layer)[weight.name]
        name = f"{self._stack.path}.{layer}.{weight.name}"
        return name, array.T if weight.turned else array


def _stem(tensor: GraphTensor) -> str:
    """Returns the name of a layer's tensor without the layer."""
    return tensor.name.removesuffix(f".{tensor.layer}")


def _alike(node: ir.Node, other: ir.Node) -> bool:
    """Returns whether two nodes are the same but for inputs."""
    mine, theirs = (
        [item.op_identifier(), len(item.inputs), len(item.outputs)] for item in (node, other)
    )
    attributes = [
        {name: str(item.value) for name, item in each.attributes.items()} for each in (node, other)
    ]
    return mine == theirs and attributes[0] == attributes[1]


def _growth(mine: ir.Value, theirs: ir.Value) -> np.ndarray | None:
    """Returns by how much a constant grows per layer; None if it stays."""
    if not mine.is_initializer() or not theirs.is_initializer():
        raise _UnlikeError
    here, there = array_of(mine), array_of(theirs)
    if here.shape != there.shape or here.dtype != there.dtype:
        raise _UnlikeError
    if np.array_equal(here, there):
        return None
    if here.dtype.kind not in "iu":
        raise _UnlikeError
    return here - there


def _same_view(array: np.ndarray, other: np.ndarray) -> bool:
    return array.shape == other.shape and array.strides == other.strides


def _key(array: np.ndarray) -> tuple[object, ...]:
    return (array.shape, array.tobytes())
