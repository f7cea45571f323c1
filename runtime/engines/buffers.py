"""Which arrays the engines of a set need, and which tensors share one.

| tensor | lives in |
|---|---|
| of lifetime `request` (a KV cache, a condition) | one array per role, dtype and shape of a row |
| other inputs | an array of its own for each shape |
| other outputs | one array per role and dtype, which the next run of any engine overwrites |

The rows of a tensor are its outermost axis; a tensor of fewer rows sees the first ones. So a
smaller context is a prefix of a larger one, what is written once per request is there for every
shape, and an output of lifetime `request` of one graph is the input of another.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Generic, TypeVar

import numpy as np

from ..bundle.manifest import CACHE_ROLE, GraphSpec, TensorSpec

INPUTS = "inputs"
"""How accounts call all inputs that have an array of their own."""
Array = TypeVar("Array")


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffer:
    """One array."""

    role: str
    """Of the tensors in it, or INPUTS."""
    kept: bool
    """Whether its values stay for a whole request."""
    dtype: str
    size: int
    """Items of the largest tensor in it."""

    @property
    def nbytes(self) -> int:
        """Bytes of it."""
        return self.size * np.dtype(self.dtype).itemsize


def place_of(tensor: TensorSpec, spec: GraphSpec) -> Hashable:
    """Identifies the array that a tensor of a shape lives in."""
    if tensor.lifetime == "request":
        return ("request", tensor.role, tensor.dtype, tensor.shape[1:])
    if tensor in spec.outputs:
        return ("output", tensor.role, tensor.dtype)
    return (spec.key, tensor.name)


def buffers_of(specs: Iterable[GraphSpec]) -> dict[Hashable, Buffer]:
    """Gives the arrays that these shapes need together, by place."""
    found: dict[Hashable, Buffer] = {}
    for spec in specs:
        for tensor in (*spec.inputs, *spec.outputs):
            place, size = place_of(tensor, spec), prod(tensor.shape)
            kept = tensor.lifetime == "request"
            role = tensor.role if kept or tensor in spec.outputs else INPUTS
            if tensor.cache is not None:  # one part of the account, however many layers have one
                role = CACHE_ROLE if kept else f"{CACHE_ROLE}_new"
            if place not in found or found[place].size < size:
                found[place] = Buffer(role=role, kept=kept, dtype=tensor.dtype, size=size)
    return found


def bytes_by_role(buffers: Iterable[Buffer]) -> dict[str, int]:
    """Adds up bytes by role."""
    held: dict[str, int] = {}
    for buffer in buffers:
        held[buffer.role] = held.get(buffer.role, 0) + buffer.nbytes
    return held


def host_buffers(specs: Iterable[GraphSpec]) -> Buffers[np.ndarray]:
    """Gives the arrays of a set whose engines compute in this process's memory."""
    return Buffers(specs, np.zeros, lambda array, shape: array[: prod(shape)].reshape(shape))


class Buffers(Generic[Array]):
    """The arrays of one set of engines, made when they are first asked for."""

    def __init__(
        self,
        specs: Iterable[GraphSpec],
        make: Callable[[int, str], Array],
        view: Callable[[Array, tuple[int, ...]], Any],
    ) -> None:
        """Lays the arrays out.

        Args:
            make: Makes an array of so many zeros of a dtype.
            view: Gives the first items of an array in a shape.
        """
        self._specs, self._make, self._view = tuple(specs), make, view
        self._needed = buffers_of(self._specs)
        self._made: dict[Hashable, Array] = {}

    def __iter__(self) -> Iterator[Array]:
        return iter(self._made.values())

    def view(self, tensor: TensorSpec, spec: GraphSpec) -> Any:
        """Gives a tensor's array: zeros at first, the same memory at every call."""
        place = place_of(tensor, spec)
        if place not in self._made:
            needed = self._needed[place]
            self._made[place] = self._make(needed.size, needed.dtype)
        return self._view(self._made[place], tensor.shape)

    def reserve(self) -> None:
        """Makes every array, so that memory runs out now or never."""
        for spec in self._specs:
            for tensor in (*spec.inputs, *spec.outputs):
                self.view(tensor, spec)

    def account(self) -> dict[str, int]:
        """Gives the bytes of what was made, by role."""
        return bytes_by_role(self._needed[place] for place in self._made)

    def clear(self) -> None:
        """Drops every array."""
        self._made.clear()
