"""From a checkpoint folder to `model.dlm`, in this order: graphs are traced, given their precision
(by calibration where there is a text), written into a draft, checked, and packed.

Nothing appears under the final name before every check has passed. Knows no family: what differs
between them comes from the table of families.
"""

from __future__ import annotations

import errno
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ..calibration.canvases.texts import Texts, find_text, read_texts
from ..calibration.forms.base import Form
from ..calibration.forms.board import BoardForm
from ..calibration.forms.cpu import CpuForm
from ..calibration.graphs import Models, rank_of
from ..calibration.options import QuantisationOptions
from ..calibration.quantise import Quantiser
from ..calibration.recipe import read_recipe, recipe_bytes
from ..calibration.report.page import make_page, plotting
from ..calibration.report.quality_report import (
    PAGE_NAME,
    RECIPE_NAME,
    quality_report,
    write_reports,
)
from ..calibration.scales.calibrate import Calibrator
from ..calibration.workbench import describing
from ..jetson.targets import target as find_target
from ..runtime.bundle.archive import describe
from ..runtime.bundle.bundle import REPORT_NAME, Bundle, write_bundle
from ..runtime.bundle.manifest import GraphSpec, Manifest
from ..runtime.bundle.manifest_check import TOKENIZER_NAME
from ..runtime.cli.progress import bar
from ..runtime.engines import open_engines
from ..runtime.errors import DlmError
from ..runtime.families.base import LoadedModel
from ..runtime.families.table import find_family, load_model
from ..runtime.families.window import choose_block
from ..runtime.measure.check import GOLDEN_NAME
from ..runtime.measure.judge import Judge
from ..runtime.side_by_side import for_batch, time_batch
from ..train.families.base import ExportGraph
from ..train.torch_engine import idle_cores, torch_threads
from .checks.budget import check_budget, show_forecast
from .checks.decoding import default_decoding
from .checks.golden import golden_vectors
from .checks.parity import compare, compare_batches, find_head, hidden_rows
from .members.card import CARD_NAME, read_own_text, write_card
from .members.chat import chat_member
from .onnx_graph.lint import operator_counts, require_clean
from .onnx_graph.trace import share_between, trace, traced_dims
from .onnx_graph.vocabulary import split_vocabulary
from .onnx_graph.weights import split_weights
from .settings import ARITHMETIC, INTEGERS, ExportSettings, check_output
from .source import Traceable, load_source

Say = Callable[[str], None]


@contextmanager
def full_folder_named() -> Iterator[None]:
    """Names the folder for temporary files where it fills up; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC and error.filename is None:
            raise DlmError(
                f"no space is left in {tempfile.gettempdir()}, where graphs and weights are "
                "written before they are packed: free some, or name another folder as TMPDIR"
            ) from error
        raise


@full_folder_named()
def export_checkpoint(
    checkpoint_path: Path,
    output: Path,
    settings: ExportSettings,
    progress: Say = lambda line: None,
    *,
    notes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Exports a checkpoint folder and returns the figures that went into the report.

    Args:
        checkpoint_path: Folder, hub name or GGUF file.
        notes: Goes into the report as it is.

    Raises:
        DlmError: The checkpoint cannot be used, a check failed, or the bundle cannot be written.
    """
    check_output(output, settings)
    progress(f"reading {checkpoint_path}")
    source = load_source(checkpoint_path, settings)
    own_text = read_own_text(settings.card)
    ids = source.text(settings.data)
    with tempfile.TemporaryDirectory(prefix="dlm-export-") as name:
        draft = make_draft(source, settings, Path(name), progress)
        bundle = with_batch(draft.bundle, settings.batch)
        report = {**draft.figures, **(notes or {})}
        report["forecast"] = check_budget(bundle, settings, progress)
        with torch_threads(idle_cores()):
            parity, batches, golden = _check(source.graphs, bundle, settings, ids, progress)
        report["parity"] = parity
        if batches:
            report["batches"] = batches
        if settings.choose_decoding:
            bundle, report["decoding"] = default_decoding(bundle, source.tokenizer, ids, progress)
        calibrated = dict(draft.calibrated)
        if draft.quality is not None:
            report["quality"] = draft.quality
            page = make_page(draft.quality)
            show_forecast(page, report["forecast"])
            calibrated[PAGE_NAME] = page.render().encode()
        for note in source.notes:
            progress(note)
        manifest = bundle.manifest
        members = {**draft.members, **calibrated, **chat_member(source.chat)}
        members[TOKENIZER_NAME] = source.tokenizer_json.encode()
        members[GOLDEN_NAME] = golden
        members[REPORT_NAME] = (json.dumps(report, indent=1) + "\n").encode()
        members[CARD_NAME] = write_card(manifest, report, own_text).encode()
        progress(f"packing {output}")
        with bar() as show:
            digest = write_bundle(output, manifest, members, show)
    found = {"bundle": str(output), "sha256": digest, "bytes": output.stat().st_size, **report}
    if draft.quality is not None:
        beside = settings.report_dir or output.with_suffix(".report")
        write_reports(beside, draft.quality, calibrated)
        found["report_dir"] = str(beside)
    return found


def forecast_checkpoint(
    checkpoint_path: Path,
    settings: ExportSettings,
    progress: Say = lambda line: None,
) -> dict[str, Any]:
    """Predicts what a checkpoint takes on its target, and writes nothing.

    int8 and int4 are forecast without calibration: on a board int8 products are float16 then, and
    slower.

    Raises:
        DlmError: The checkpoint cannot be used, or does not fit.
    """
    uncalibrated = settings.precision in INTEGERS
    settings = replace(settings, uncalibrated=uncalibrated, calibration_data=None, recipe=None)
    source = load_source(checkpoint_path, settings)
    with tempfile.TemporaryDirectory(prefix="dlm-export-") as name:
        draft = make_draft(source, settings, Path(name), progress)
        return check_budget(draft.bundle, settings, progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A checkpoint's graphs at the precision asked for, in a folder, not yet checked."""

    bundle: Bundle
    """Opens as a bundle of graphs alone."""
    members: Mapping[str, bytes | Path]
    """Graphs and weights."""
    figures: Mapping[str, Any]
    """What the report says of them."""
    quality: Mapping[str, Any] | None
    """What calibration measured; None where nothing was."""
    calibrated: Mapping[str, bytes] = field(default_factory=dict)
    """Members that calibration adds."""


def make_draft(
    source: Traceable,
    settings: ExportSettings,
    folder: Path,
    progress: Say,
    *,
    candidate: bool = False,
) -> Draft:
    """Traces a checkpoint, gives it its precision, and writes the graphs into an empty folder.

    A candidate is measured as far as its graphs depend on it; it has no `quality`.

    Raises:
        DlmError: A graph cannot be exported, there is nothing to calibrate with, or a budget
            cannot be kept.
    """
    texts = _texts(source, settings)
    edits = read_recipe(settings.recipe) if settings.recipe else None
    with Judge.open(settings.judge if texts else None) as judge:
        with torch_threads(idle_cores()):
            traced, manifest = _trace(source, settings, progress)
        form = form_for(settings.target)
        calibrator = Calibrator(traced, manifest.graphs, form, settings.target, settings.precision)
        quality: Mapping[str, Any] | None = None
        if texts is None:
            models, calibrated = _unmeasured(calibrator, settings.precision, progress)
        else:
            options = QuantisationOptions(
                precision=settings.precision,
                target=settings.target,
                max_loss=settings.budget / 100,
                num_tokens=settings.loss_tokens,
                edits=edits,
                force=settings.force,
                judge=judge,
                canvases=settings.canvases,
                seed=settings.seed,
                brief=candidate,
            )
            quantiser = Quantiser(calibrator, manifest, source.tokenizer, texts, options, progress)
            quantised = quantiser.run()
            models, calibrated = quantised.models, {RECIPE_NAME: recipe_bytes(quantised.recipe)}
            if not candidate:
                quality = quality_report(quantised, options, texts, manifest.family)
    manifest = describing(manifest, models, precision=settings.precision)
    figures = _checked_figures(models, settings, progress)
    (folder / "graphs").mkdir()
    progress("writing weights")
    with bar() as show:
        members = split_weights(models, folder / "graphs", show)
    manifest = replace(
        manifest, members={name: describe(content) for name, content in members.items()}
    )
    return Draft(
        bundle=Bundle(path=folder, sha256="", manifest=manifest, folder=folder),
        members=members,
        figures=figures,
        quality=quality,
        calibrated=calibrated,
    )


def _unmeasured(
    calibrator: Calibrator, precision: str, progress: Say
) -> tuple[Models, Mapping[str, bytes]]:
    """Returns graphs at a precision whose loss is not measured, and the members that this adds."""
    match precision:
        case "int8" | "int4":
            progress(f"uncalibrated: what {precision} costs is not measured")
            fitted = calibrator.weights_only()
            members = {RECIPE_NAME: recipe_bytes(fitted.recipe)}
            return calibrator.quantised(fitted, fitted.recipe), members
        case "fp16":
            progress("no text to measure the loss on: give --calibration-data to have it measured")
            return calibrator.fp16(calibrator.default_recipe({})), {}
        case _:
            return calibrator.models, {}


def form_for(target: str) -> Form:
    """Returns a target's form: typed graphs for GPUs, the CPU's own for all others."""
    return BoardForm() if find_target(target).is_gpu else CpuForm()


def _texts(source: Traceable, settings: ExportSettings) -> Texts | None:
    """Reads the text to calibrate and measure on; None where nothing is lost, or fp16 has none."""
    if settings.precision == "fp32" or settings.uncalibrated:
        return None
    found = find_text(settings.calibration_data, source.config)
    if found is None:
        return None
    plotting()  # asked now, since the report is drawn after everything is measured
    return read_texts(found, settings.data, source.tokenizer, source.manifest.framing, source.chat)


def _trace(source: Traceable, settings: ExportSettings, progress: Say) -> tuple[Models, Manifest]:
    """Traces every graph; returns float32 models by name, and the manifest with their shapes."""
    models: dict[str, ir.Model] = {}
    specs: list[GraphSpec] = []
    manifest = source.manifest
    if note := untrained_blocks(manifest, settings.blocks):
        progress(note)
    for graph in source.graphs:
        shapes = graph.shapes(settings.blocks, settings.contexts)
        specs += graph.specs(shapes, precision=manifest.precision)
    if (default := manifest.decoding.get("block_size")) is not None:
        choose_block(find_family(manifest.family).blocks(manifest, specs), default)
    for graph in source.graphs:
        progress(f"tracing {graph.name}")
        dims = traced_dims(graph.shapes(settings.blocks, settings.contexts))
        dims["batch"] = max(dims.get("batch", 1), min(2, settings.batch))  # 2 stays symbolic
        models[graph.name] = trace(graph, dims, progress)
    share_between(models)
    item_bytes = 4 if settings.precision == "fp32" else 2
    for name, model in models.items():
        if cut := split_vocabulary(model, item_bytes=item_bytes):
            progress(f"{name}: {', '.join(cut)} is cut along the vocabulary, being too large")
    return models, replace(manifest, graphs=tuple(specs))


def untrained_blocks(manifest: Manifest, blocks: Sequence[int | str]) -> str:
    """Says which of the sizes asked for the model has not learnt to denoise; empty: none."""
    trained = manifest.block_sizes
    untrained = [str(size) for size in blocks if isinstance(size, int) and size not in trained]
    if not untrained or find_family(manifest.family).exact:
        return ""
    return (
        f"note: --block {','.join(untrained)} was not trained ({', '.join(map(str, trained))} "
        "were): expect worse text"
    )


def _checked_figures(models: Models, settings: ExportSettings, progress: Say) -> dict[str, Any]:
    """Checks that every graph can run where it will; returns what the report says of them."""
    board = find_target(settings.target).is_gpu or settings.precision not in INTEGERS
    graphs: dict[str, Any] = {}
    for name, model in models.items():
        progress(f"checking {name}: {len(model.graph)} nodes")
        require_clean(model, name, board=board)
        matrices = [item for item in model.graph.initializers.values() if rank_of(item) > 1]
        graphs[name] = {
            "nodes": len(model.graph),
            "operators": operator_counts(model),
            "opset": model.opset_imports[""],
            "fp16_tensors": sum(item.dtype == ir.DataType.FLOAT16 for item in matrices),
            "int8_tensors": sum(item.dtype == ir.DataType.INT8 for item in matrices),
        }
    return {
        "graphs": graphs,
        "precision": settings.precision,
        "target": settings.target,
        "arithmetic": ARITHMETIC[settings.form],
    }


def with_batch(draft: Bundle, batch: int) -> Bundle:
    """Offers every shape of a bundle for so many texts, too."""
    manifest = draft.manifest
    if batch == 1:
        return draft
    graphs = (*manifest.graphs, *(for_batch(spec, batch) for spec in manifest.graphs))
    return replace(draft, manifest=replace(manifest, graphs=graphs))


def _check(
    graphs: Sequence[ExportGraph],
    draft: Bundle,
    settings: ExportSettings,
    ids: np.ndarray,
    progress: Say,
) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Compares every graph with PyTorch, and texts that share runs with each alone; returns the
    figures of both (of batches also whether they pay), and the golden vectors."""
    manifest = draft.manifest
    engines = open_engines(draft, "onnxruntime")
    try:
        parity: dict[str, Any] = {}
        batches: dict[str, Any] = {}
        head, rows = find_head(graphs), hidden_rows(graphs, manifest, ids, settings.seed)
        for graph in graphs:
            progress(f"comparing {graph.name} with PyTorch")
            with bar() as show:
                parity[graph.name] = compare(
                    graph, manifest, engines, ids, precision=settings.form, seed=settings.seed,
                    head=head, rows=rows, progress=show,
                )  # fmt: skip
        if settings.batch > 1:
            progress(f"comparing {settings.batch} texts together with each alone")
            batches["shapes"] = compare_batches(
                manifest, engines, precision=settings.form, seed=settings.seed
            )
            if not find_target(settings.target).is_gpu:
                batches["times"] = _time_batch(load_model(manifest, engines), settings, progress)
        noises = {graph.name: graph.corrupt for graph in graphs}
        golden = golden_vectors(manifest, engines, ids, noises, seed=settings.seed, rows=rows)
    finally:
        engines.close()
    return parity, batches, golden


def _time_batch(model: LoadedModel, settings: ExportSettings, progress: Say) -> dict[str, Any]:
    """Says whether a batch pays on this machine, where the target is a CPU."""
    times = time_batch(model, settings.batch)
    if times.gain(settings.batch) > 1:
        progress(f"on this machine {times}")
    else:
        progress(
            f"warning: on this machine {times}, so dlm-run does not use the batch; export without "
            "--batch, or for another machine"
        )
    return asdict(times)
