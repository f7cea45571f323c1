"""A checkpoint's graphs at the precision asked for: traced, then calibrated where that is due."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx

from ..calibration.canvases.texts import Texts, find_text, read_texts
from ..calibration.losses.judge import Judge
from ..calibration.quantise import Quantiser
from ..calibration.report.page import plotting
from ..calibration.report.quality_report import PLAN_NAME, quality_report, report_members
from ..calibration.scales.plan import plan_bytes, read_plan
from ..calibration.uncalibrated import round_weights
from ..calibration.wishes import Wishes
from ..runtime.bundle.manifest import GraphSpec, Manifest
from ..runtime.errors import CalibrationError
from ..runtime.families import find_family
from ..train.families.base import ExportGraph
from .onnx_graph.outside import Arrays, fill
from .onnx_graph.recipes import recipe_for
from .onnx_graph.sharing import share_between
from .onnx_graph.trace import trace_outside, traced_dims
from .onnx_graph.vocabulary import split_vocabulary
from .settings import ExportSettings
from .source import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A checkpoint's graphs at the precision asked for."""

    models: Mapping[str, onnx.ModelProto]
    """By name, weights inside."""
    manifest: Manifest
    """With every shape, without members."""
    quality: Mapping[str, Any] | None = None
    """What calibration measured; None where nothing was."""
    extra: Mapping[str, bytes] = field(default_factory=dict)
    """Members that calibration adds."""


def make_models(source: Source, settings: ExportSettings, progress: Callable[[str], None]) -> Made:
    """Traces a checkpoint and gives it its precision, by calibration where that is due.

    Raises:
        DlmError: Nothing to calibrate with, or a budget that cannot be held.
    """
    texts = _texts(source, settings)
    edits = read_plan(settings.plan) if settings.plan else None
    judge = Judge(settings.judge) if settings.judge and texts else None
    models, manifest = _trace_all(source.graphs, source.manifest, settings, progress)
    apart = any(graph.rows_apart for graph in source.graphs)
    recipe = recipe_for(settings.target, rows_apart=apart)
    if texts is not None:
        wishes = _wishes(settings, edits, judge)
        shipped = Quantiser(
            models, manifest, source.tokenizer, texts, recipe, wishes, progress
        ).run()
        quality = quality_report(shipped, wishes, texts, manifest.family)
        extra = report_members(shipped, quality)
        return Made(models=shipped.models, manifest=manifest, quality=quality, extra=extra)
    if settings.precision == "int8":
        progress("uncalibrated: what int8 costs is not measured")
        plan = round_weights(models, manifest, recipe, progress)
        return Made(models=models, manifest=manifest, extra={PLAN_NAME: plan_bytes(plan)})
    if settings.precision == "fp16":
        progress("no text to measure the loss on: give --calibration-data to have it measured")
        for name in list(models):  # one at a time, so that the float32 one is let go of
            models[name] = recipe.build_fp16(models[name], ())
    return Made(models=models, manifest=manifest)


def _texts(source: Source, settings: ExportSettings) -> Texts | None:
    """Finds the text to calibrate and measure on; None where nothing is lost, or fp16 has none."""
    if settings.precision == "fp32" or settings.uncalibrated:
        return None
    found = find_text(settings.calibration_data, source.config)
    if found is not None:
        plotting()  # asked now, since the report is drawn after everything is measured
        return read_texts(found, settings.data, source.tokenizer, source.manifest.eos_token_id)
    if settings.precision == "int8" or settings.plan:
        raise CalibrationError(
            f"--precision {settings.precision} needs --calibration-data FILE, documents of the "
            "kind that the model will write (the text that training was validated on is not here), "
            "or --uncalibrated"
        )
    return None


def _wishes(
    settings: ExportSettings, edits: Mapping[str, Any] | None, judge: Judge | None
) -> Wishes:
    return Wishes(
        precision=settings.precision,
        target=settings.target,
        max_loss=settings.max_loss / 100,
        num_tokens=settings.loss_tokens,
        edits=edits,
        force=settings.force,
        judge=judge,
        canvases=settings.canvases,
        seed=settings.seed,
    )


def untrained_blocks(manifest: Manifest, blocks: Sequence[int | str]) -> str:
    """Says which of the sizes asked for the model has not learnt to denoise; empty: none."""
    trained = manifest.block_sizes
    strange = [str(size) for size in blocks if isinstance(size, int) and size not in trained]
    if not strange or find_family(manifest.family).exact:
        return ""
    return (
        f"note: --block {','.join(strange)} was not trained ({', '.join(map(str, trained))} were): "
        "expect worse text"
    )


def _trace_all(
    graphs: Sequence[ExportGraph],
    manifest: Manifest,
    settings: ExportSettings,
    progress: Callable[[str], None],
) -> tuple[dict[str, onnx.ModelProto], Manifest]:
    """Traces every graph; returns float32 models by name, and the manifest with their shapes."""
    traced: dict[str, tuple[onnx.ModelProto, Arrays]] = {}
    specs: list[GraphSpec] = []
    if note := untrained_blocks(manifest, settings.blocks):
        progress(note)
    for graph in graphs:
        progress(f"tracing {graph.name}")
        shapes = graph.shapes(settings.blocks, settings.contexts)
        traced[graph.name] = trace_outside(graph, traced_dims(shapes))
        specs += graph.specs(shapes, precision=manifest.precision)
    share_between(traced)
    models = {}
    for name, (model, arrays) in traced.items():
        item_bytes = 4 if settings.precision == "fp32" else 2
        if cut := split_vocabulary(model, arrays, item_bytes=item_bytes):
            progress(f"{name}: {', '.join(cut)} is cut along the vocabulary, being too large")
        models[name] = fill(model, arrays)
    return models, replace(manifest, graphs=tuple(specs))
