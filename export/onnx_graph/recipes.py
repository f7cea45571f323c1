"""How each kind of target's graphs get their precision: the table that calibration works from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import onnx

from ...calibration.scales.calibrate import Layers, Recipe
from ...calibration.scales.plan import GraphPlan, default_plan
from ...calibration.scales.qdq import quantize
from ...jetson.targets import TARGETS
from ...train.families.base import ExportGraph
from .fp16 import store_fp16
from .typed import half_values, type_fp16

GPU_TARGETS = tuple(name for name, item in TARGETS.items() if item.is_gpu)
"""Targets whose graphs are typed: float16 and int8 stand in the ONNX, as TensorRT wants it."""


def graphs_for(target: str, graphs: Sequence[ExportGraph]) -> tuple[ExportGraph, ...]:
    """Returns the graphs to export for a target: in parts where few rows of a head are wanted.

    A board reads the head's matrix in every run anyway, and reading it twice costs more than
    computing it for all rows; on a CPU arithmetic is what costs.
    """
    if target in GPU_TARGETS:
        return tuple(graphs)
    return tuple(part for graph in graphs for part in (graph.parts or (graph,)))


def recipe_for(target: str, *, rows_apart: bool = False) -> Recipe:
    """Returns a target's recipe: typed graphs for GPUs, the CPU's own for all others.

    Args:
        target: Name of `--target`.
        rows_apart: See ExportGraph. A GPU's int8 has fixed scales, the same for every row.
    """
    if target in GPU_TARGETS:
        return Recipe(
            target=target,
            default_plan=default_plan,
            build=_typed_int8,
            build_fp16=_typed_fp16,
            half_values=half_values,
        )
    from ...calibration.scales.cpu import cpu_plan, weight_limit

    limit = weight_limit(target)
    return Recipe(
        target=target,
        default_plan=cpu_plan,
        build=partial(_cpu_int8, limit=limit, rows_apart=rows_apart),
        weight_limit=limit,
        dynamic=True,
        build_fp16=_stored_fp16,
        half_values=lambda model: (),
    )


def _typed_int8(model: onnx.ModelProto, layers: Layers, plan: GraphPlan) -> onnx.ModelProto:
    made = quantize(model, layers, plan)
    type_fp16(made, plan.float32)
    return made


def _typed_fp16(model: onnx.ModelProto, float32: Sequence[str]) -> onnx.ModelProto:
    made = _copied(model)
    type_fp16(made, float32)
    return made


def _cpu_int8(
    model: onnx.ModelProto, layers: Layers, plan: GraphPlan, *, limit: int, rows_apart: bool
) -> onnx.ModelProto:
    from ...calibration.scales.cpu import quantize_for_cpu

    made = quantize_for_cpu(model, layers, plan, limit=limit, rows_apart=rows_apart)
    store_fp16(made)  # what stays in floating point takes half the bytes, as without int8
    return made


def _stored_fp16(model: onnx.ModelProto, float32: Sequence[str]) -> onnx.ModelProto:
    del float32  # arithmetic stays in float32, where everything fits
    made = _copied(model)
    store_fp16(made)
    return made


def _copied(model: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    return made
