"""From a checkpoint folder to `model.dlm`: trace, quantise, check, record, pack, in that order.

Nothing appears under the final name before every check has passed. Knows no family: what differs
between them comes from the table of families.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..calibration.report.quality_report import write_reports
from ..runtime.bundle.archive import describe
from ..runtime.bundle.bundle import REPORT_NAME, Bundle, write_bundle
from ..runtime.bundle.manifest import Manifest
from ..runtime.bundle.manifest_check import TOKENIZER_NAME
from ..runtime.cli.bars import bar
from ..runtime.engines import open_engines
from ..runtime.measure.check import GOLDEN_NAME
from ..train.families.base import ExportGraph
from .checks.budget import check_budget
from .checks.golden import golden_vectors
from .checks.parity import compare, find_head, hidden_rows
from .members.card import CARD_NAME, read_own_text, write_card
from .members.chat import chat_member
from .models import Made, make_models
from .onnx_graph.half_cache import halve_cache
from .onnx_graph.lean import check_valid
from .onnx_graph.lint import operator_counts, require_clean
from .onnx_graph.recipes import GPU_TARGETS
from .onnx_graph.weights import split_weights
from .room import room_beside
from .settings import ARITHMETIC, ExportSettings, check_output
from .source import load_source


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


def forecast_checkpoint(
    checkpoint_path: Path,
    settings: ExportSettings,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Predicts what a checkpoint takes on its target, and writes nothing.

    int8 is forecast without calibration: on a board its products are float16 then, and slower.

    Raises:
        DlmError: The checkpoint cannot be used, or does not fit.
    """
    uncalibrated = settings.precision == "int8"
    settings = replace(settings, uncalibrated=uncalibrated, calibration_data=None, plan=None)
    source = load_source(checkpoint_path, settings)
    made = make_models(source, settings, progress)
    with tempfile.TemporaryDirectory(prefix="dlm-export-") as name:
        draft, _, _ = draft_bundle(made, settings, Path(name), progress)
        return check_budget(draft, settings, progress)


def draft_bundle(
    made: Made, settings: ExportSettings, folder: Path, progress: Callable[[str], None]
) -> tuple[Bundle, dict[str, bytes | Path], dict[str, Any]]:
    """Writes graphs into an empty folder; returns the bundle to be, its members and figures."""
    (folder / "graphs").mkdir()
    members, manifest, report = _write_all(made.models, made.manifest, settings, folder, progress)
    return Bundle(path=folder, sha256="", manifest=manifest, folder=folder), members, report


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
