"""From a checkpoint folder to `model.dlm`: trace, quantise, check, record, pack, in that order.

Nothing appears under the final name before every check has passed. Knows no family: what differs
between them comes from the table of families.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..calibration.judge import Judge
from ..calibration.plan import plan_bytes, read_plan
from ..calibration.report_page import plotting
from ..runtime.archive import describe
from ..runtime.bundle import REPORT_NAME, Bundle, write_bundle
from ..runtime.check import GOLDEN_NAME
from ..runtime.engines import open_engines
from ..runtime.errors import BundleError, CalibrationError, ConfigError
from ..runtime.manifest import GraphSpec, Manifest
from ..runtime.manifest_check import TOKENIZER_NAME
from ..train.families.base import ExportGraph
from ..train.families.shapes import default_block
from .bars import bar
from .budget import check_budget
from .card import CARD_NAME, read_own_text, write_card
from .chat import chat_member
from .golden import golden_vectors
from .graph import graph_specs
from .half_cache import halve_cache
from .lean import check_valid
from .lint import operator_counts, require_clean
from .outside import Arrays, fill
from .parity import compare, find_head, hidden_rows
from .quality_report import PLAN_NAME, quality_report, report_members, write_reports
from .quantise import Quantiser
from .recipes import GPU_TARGETS, recipe_for
from .room import room_beside
from .settings import ARITHMETIC, ExportSettings
from .sharing import share_between
from .source import Source, load_source
from .texts import Texts, find_text, read_texts
from .trace import trace_outside
from .uncalibrated import round_weights
from .vocabulary import split_vocabulary
from .weights import split_weights
from .wishes import Wishes


@room_beside()
def export_checkpoint(
    checkpoint_path: Path,
    output: Path,
    settings: ExportSettings,
    progress: Callable[[str], None] = lambda line: None,
    *,
    notes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Exports a checkpoint folder and returns the figures that went into the report.

    Args:
        checkpoint_path: The folder that dlm-train wrote, or a name on the hub.
        output: The bundle.
        settings: What it is made for.
        progress: Told what is being done.
        notes: Goes into the report as it is.

    Raises:
        DlmError: The checkpoint cannot be used, a check failed, or the bundle cannot be written.
    """
    check_output(output, settings.report_dir, settings.canvases)
    source = load_source(checkpoint_path, settings)
    own_text = read_own_text(settings.card)
    ids = source.text(settings.data)
    made = make_models(source, settings, progress)
    with tempfile.TemporaryDirectory(prefix="dlm-export-") as name:
        draft, members, report = draft_bundle(made, settings, Path(name), progress)
        report |= notes or {}
        report["plan"] = check_budget(draft, settings, progress)
        report |= _check_all(source.graphs, draft, settings, ids, progress)
        golden = report.pop("golden")
        if made.quality is not None:
            report["quality"] = made.quality
        if source.chat_note:
            progress(source.chat_note)
        members |= {**made.extra, **chat_member(source.chat)}
        members[TOKENIZER_NAME] = source.tokenizer_json.encode()
        members[GOLDEN_NAME] = golden
        members[REPORT_NAME] = (json.dumps(report, indent=1) + "\n").encode()
        members[CARD_NAME] = write_card(draft.manifest, report, own_text).encode()
        progress(f"packing {output}")
        with bar() as show:
            digest = write_bundle(output, draft.manifest, members, show)
    found = {"bundle": str(output), "sha256": digest, "bytes": output.stat().st_size, **report}
    if made.quality is not None:
        beside = settings.report_dir or output.with_suffix(".report")
        write_reports(beside, made.quality, made.extra)
        found["report_dir"] = str(beside)
    return found


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


def draft_bundle(
    made: Made, settings: ExportSettings, folder: Path, progress: Callable[[str], None]
) -> tuple[Bundle, dict[str, bytes | Path], dict[str, Any]]:
    """Writes graphs into an empty folder; returns the bundle to be, its members and figures."""
    (folder / "graphs").mkdir()
    members, manifest, report = _write_all(made.models, made.manifest, settings, folder, progress)
    return Bundle(path=folder, sha256="", manifest=manifest, folder=folder), members, report


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


def check_output(
    output: Path, report_dir: Path | None = None, canvases: Path | None = None
) -> None:
    """Finds out before minutes of work that something could not be written."""
    folder = output.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or output.is_dir():
        raise BundleError(
            f"cannot write {output}: its folder is missing or not writable, or it is a folder; "
            "choose another -o"
        )
    if output.suffix != ".dlm":
        raise ConfigError(f"-o {output} must end in .dlm, by which dlm-run knows a bundle")
    if canvases is not None and (canvases.is_dir() or not os.access(canvases.parent, os.W_OK)):
        raise ConfigError(
            f"cannot write {canvases}: its folder is missing or not writable, or it is a folder; "
            "choose another --canvases"
        )
    if report_dir is not None:
        there = next(place for place in (report_dir.absolute() / "-").parents if place.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise ConfigError(
                f"cannot write the report into {report_dir}: {there} is no folder or not writable; "
                "choose another --report-dir"
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
    decoding = dict(manifest.decoding)
    for graph in graphs:
        progress(f"tracing {graph.name}")
        shapes = graph.shapes(settings.blocks, settings.contexts)
        default = default_block(shapes)
        if default is not None:
            decoding.setdefault("block_size", default)
        traced_at = max(shapes, key=lambda shape: shape.context)
        # A dimension of 1 would be traced as a constant.
        shape = replace(traced_at, block=max(traced_at.block, 2))
        traced[graph.name] = trace_outside(graph, shape)
        file = f"graphs/{graph.name}.onnx"
        specs += graph_specs(graph, shapes, file=file, precision=manifest.precision)
    share_between(traced)
    models = {}
    for name, (model, arrays) in traced.items():
        item_bytes = 4 if settings.precision == "fp32" else 2
        if cut := split_vocabulary(model, arrays, item_bytes=item_bytes):
            progress(f"{name}: {', '.join(cut)} is cut along the vocabulary, being too large")
        models[name] = fill(model, arrays)
    return models, replace(manifest, graphs=tuple(specs), decoding=decoding)


def _write_all(
    models: Mapping[str, onnx.ModelProto],
    manifest: Manifest,
    settings: ExportSettings,
    folder: Path,
    progress: Callable[[str], None],
) -> tuple[dict[str, bytes | Path], Manifest, dict[str, Any]]:
    """Writes every graph under `folder`; returns members, completed manifest and figures."""
    figures: dict[str, Any] = {}
    members: dict[str, bytes | Path] = {}
    board = settings.target in GPU_TARGETS or settings.precision != "int8"
    for name, model in models.items():
        if settings.form.endswith("typed"):
            manifest = halve_cache(model, manifest, name)
        progress(f"checking {name}: {len(model.graph.node)} nodes")
        require_clean(model, name, board=board)
        check_valid(model, name)
        figures[name] = {
            "nodes": len(model.graph.node),
            "operators": operator_counts(model),
            "opset": model.opset_import[0].version,
            "fp16_tensors": _count(model, onnx.TensorProto.FLOAT16),
            "int8_tensors": _count(model, onnx.TensorProto.INT8),
        }
    progress("writing weights")
    with bar() as show:
        members |= split_weights(models, folder / "graphs", show)
    manifest = replace(
        manifest, members={name: describe(content) for name, content in members.items()}
    )
    report = {"graphs": figures, "precision": settings.precision, "target": settings.target}
    report["arithmetic"] = ARITHMETIC[settings.form]
    return members, manifest, report


def _count(model: onnx.ModelProto, kind: int) -> int:
    """Counts the matrices of a dtype."""
    return sum(item.data_type == kind and len(item.dims) > 1 for item in model.graph.initializer)


def _check_all(
    graphs: Sequence[ExportGraph],
    draft: Bundle,
    settings: ExportSettings,
    ids: np.ndarray,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Parity of every graph, and the golden vectors (as `golden`)."""
    manifest = draft.manifest
    engines = open_engines(draft, "onnxruntime")
    try:
        parity: dict[str, Any] = {}
        head, rows = find_head(graphs), hidden_rows(graphs, manifest, ids, settings.seed)
        for graph in graphs:
            progress(f"comparing {graph.name} with PyTorch")
            with bar() as show:
                parity[graph.name] = compare(
                    graph, manifest, engines, ids, precision=settings.form, seed=settings.seed,
                    head=head, rows=rows, progress=show,
                )  # fmt: skip
        noises = {graph.name: graph.corrupt for graph in graphs}
        golden = golden_vectors(manifest, engines, ids, noises, seed=settings.seed, rows=rows)
    finally:
        engines.close()
    return {"parity": parity, "golden": golden}
