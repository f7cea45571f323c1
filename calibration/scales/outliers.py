"""Which input channels of a layer are kept in floating point beside its integer product.

In pretrained models a few channels are up to a thousand times as large as the others of their row
(a scale per row follows the largest). Candidates are the channels with the largest magnitudes on
the canvases; how many are taken is decided by the measured error of the products, over a sample of
recorded rows, with both sides quantised.

The idea is that of Dettmers et al., "LLM.int8()", arXiv 2208.07339; there channels are found in
each run, here they are constants of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ..graphs import array_of
from ..layers import WeightLayer
from .activations import Activation
from .products import Products

COUNTS = (0, 8, 16, 32)
"""Channels of a layer that may be kept apart."""
SLACKS = (1.5, 1.0)
"""A smaller number is taken unless its error is more than so many times the least one; the second
where the first one's loss is beyond the budget."""


def choose_outliers(
    model: ir.Model,
    layers: Sequence[WeightLayer],
    activations: Mapping[str, Activation],
    *,
    dynamic: bool,
    slack: float = SLACKS[0],
) -> dict[str, tuple[int, ...]]:
    """Chooses the channels of every layer; layers that share an input share them.

    Args:
        model: Float32.
        layers: What `find_layers` found.
        activations: By value name, from `collect`.
        dynamic: Whether each row of a run takes its own scale instead of a fixed one for all.
        slack: Times the least error that a smaller number of channels may have.

    Returns:
        Layer name → channels, in ascending order; none where none are needed.
    """
    found: dict[str, tuple[int, ...]] = {layer.name: () for layer in layers}
    for name in dict.fromkeys(name for layer in layers for name in layer.inputs):
        readers = [layer for layer in layers if name in layer.inputs]
        # A matrix of two inputs would need two lists.
        if not all(layer.quantizable and set(layer.inputs) == {name} for layer in readers):
            continue
        seen = activations[name]
        items = model.graph.initializers
        weights = [layer.by_channel(array_of(items[layer.weight])) for layer in readers]
        order = np.argsort(-seen.channel_max, kind="stable")
        choices = [tuple(sorted(order[:count].tolist())) for count in COUNTS]
        choices = [item for item in choices if 2 * len(item) <= len(order)]
        products = Products(seen, weights)
        errors = [products.error(dynamic=dynamic, outliers=item) for item in choices]
        chosen = next(
            item
            for item, error in zip(choices, errors, strict=True)
            if error <= slack * min(errors)
        )
        found |= {layer.name: chosen for layer in readers}
    return found
