"""From a checkpoint folder to `model.dlm`: trace, quantise, check, record, pack, in that order.

Nothing appears under the final name before every check has passed. Knows no family: what differs
between them comes from the table of families.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from ..calibration.judge import Judge
from ..calibration.plan import read_plan
from ..runtime.archive import describe
from ..runtime.bundle import REPORT_NAME, Bundle, write_bundle
from ..runtime.check import GOLDEN_NAME
from ..runtime.engines import open_engines
from ..runtime.errors import BundleError, CalibrationError, ConfigError, EngineError
from ..runtime.manifest import GraphSpec, Manifest, TensorSpec
from ..runtime.manifest_check import TOKENIZER_NAME
from ..runtime.tokenizer import Tokenizer
from ..train.checkpoint import Checkpoint, load_weights, read_checkpoint
from ..train.families import FAMILIES
from ..train.families.base import ExportGraph
from .canvases import text_ids
from .card import CARD_NAME, read_own_text, write_card
from .golden import golden_vectors
from .graph import graph_specs
from .lint import operator_counts, require_clean
from .parity import compare
from .provenance import provenance
from .quality_report import quality_report, report_members, write_reports
from .quantise import Quantiser, Wishes
from .recipes import GPU_TARGETS, recipe_for
from .settings import ARITHMETIC, ExportSettings
from .texts import Texts, find_text, read_texts
from .trace import trace
from .typed import narrow_cache
from .weights import split_weights


def export_checkpoint(
    checkpoint_path: Path,
    output: Path,
    settings: ExportSettings,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Exports a checkpoint folder and returns the figures that went into the report.

    Raises:
        DlmError: The checkpoint cannot be used, a check failed, or the bundle cannot be written.
    """
    _check_output(output)
    checkpoint = read_checkpoint(checkpoint_path)
    config = checkpoint.config
    family = FAMILIES.get(config["family"])
    if family is None:
        raise ConfigError(
            f"family {config['family']!r} is unknown to this version: it exports "
            f"{', '.join(FAMILIES)}"
        )
    model = family.make_model(config["model"]).eval()
    load_weights(model, checkpoint)
    manifest = _draft(checkpoint, model, settings)
    tokenizer = Tokenizer(checkpoint.tokenizer_json)
    if tokenizer.vocab_size != manifest.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {manifest.vocab_size}: "
            "the checkpoint's files do not belong together"
        )
    graphs = family.graphs(model, config)
    own_text = read_own_text(settings.card)
    ids = text_ids(tokenizer, manifest.eos_token_id, manifest.max_position, settings.data)
    texts = _texts(config, tokenizer, manifest, settings)
    edits = read_plan(settings.plan) if settings.plan else None
    judge = Judge(settings.judge) if settings.judge and texts else None
    models, manifest = _trace_all(graphs, manifest, settings, progress)
    quality, extra = None, {}
    if texts is not None:
        wishes = _wishes(settings, edits, judge)
        shipped = Quantiser(models, manifest, tokenizer, texts, wishes, progress).run()
        models = shipped.models
        quality = quality_report(shipped, wishes, texts, manifest.family)
        extra = report_members(shipped, quality)
    elif settings.precision == "fp16":
        progress("no text to measure the loss on: give --calibration-data to have it measured")
        models = {
            name: recipe_for(settings.target).build_fp16(item, ()) for name, item in models.items()
        }
    with tempfile.TemporaryDirectory(prefix="dlm-export-") as name:
        folder = Path(name)
        (folder / "graphs").mkdir()
        members, manifest, report = _write_all(models, manifest, settings, folder, progress)
        report |= _check_all(graphs, manifest, settings, folder, ids, progress)
        golden = report.pop("golden")
        if quality is not None:
            report["quality"] = quality
        members |= extra
        members[TOKENIZER_NAME] = checkpoint.tokenizer_json.encode()
        members[GOLDEN_NAME] = golden
        members[REPORT_NAME] = (json.dumps(report, indent=1) + "\n").encode()
        members[CARD_NAME] = write_card(manifest, report, own_text).encode()
        progress(f"packing {output}")
        digest = write_bundle(output, manifest, members)
    found = {"bundle": str(output), "sha256": digest, "bytes": output.stat().st_size, **report}
    if quality is not None:
        beside = settings.report_dir or output.with_suffix(".report")
        write_reports(beside, quality, extra)
        found["report_dir"] = str(beside)
    return found


def _texts(
    config: Mapping[str, Any], tokenizer: Tokenizer, manifest: Manifest, settings: ExportSettings
) -> Texts | None:
    """Finds the text to calibrate and measure on; None where nothing is lost, or fp16 has none."""
    if settings.precision == "fp32":
        return None
    found = find_text(settings.calibration_data, config)
    if found is not None:
        return read_texts(found, settings.data, tokenizer, manifest.eos_token_id)
    if settings.precision == "int8" or settings.plan:
        raise CalibrationError(
            f"--precision {settings.precision} needs --calibration-data FILE, documents of the "
            "kind that the model will write: the text that training was validated on is not here"
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
        seed=settings.seed,
    )


def _check_output(output: Path) -> None:
    """Finds out before minutes of work that the bundle could not be written."""
    folder = output.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or output.is_dir():
        raise BundleError(
            f"cannot write {output}: its folder is missing or not writable, or it is a folder; "
            "choose another -o"
        )
    if output.suffix != ".dlm":
        raise ConfigError(f"-o {output} must end in .dlm, by which dlm-run knows a bundle")


def _draft(checkpoint: Checkpoint, model: torch.nn.Module, settings: ExportSettings) -> Manifest:
    """The manifest without graphs and members."""
    config = checkpoint.config
    fields = dict(FAMILIES[config["family"]].manifest_fields(config))
    shape = {key: value for key, value in config["model"].items() if value is not None}
    # Tied weights count once: parameters() does not repeat them.
    shape["num_parameters"] = sum(item.numel() for item in model.parameters())
    return Manifest(
        family=config["family"],
        model=shape,
        vocab_size=config["vocab_size"],
        precision=settings.precision,
        target=settings.target,
        graphs=(),
        decoding=dict(settings.decoding),
        provenance=provenance(checkpoint),
        **fields,
    )


def _trace_all(
    graphs: Sequence[ExportGraph],
    manifest: Manifest,
    settings: ExportSettings,
    progress: Callable[[str], None],
) -> tuple[dict[str, onnx.ModelProto], Manifest]:
    """Traces every graph; returns float32 models by name, and the manifest with their shapes."""
    models: dict[str, onnx.ModelProto] = {}
    specs: list[GraphSpec] = []
    for graph in graphs:
        progress(f"tracing {graph.name}")
        shapes = graph.shapes(settings.blocks, settings.contexts)
        traced_at = max(shapes, key=lambda shape: shape.context)
        # A dimension of 1 would be traced as a constant.
        models[graph.name] = trace(graph, replace(traced_at, block=max(traced_at.block, 2)))
        file = f"graphs/{graph.name}.onnx"
        specs += graph_specs(graph, shapes, file=file, precision=manifest.precision)
    return models, replace(manifest, graphs=tuple(specs))


def _write_all(
    models: Mapping[str, onnx.ModelProto],
    manifest: Manifest,
    settings: ExportSettings,
    folder: Path,
    progress: Callable[[str], None],
) -> tuple[dict[str, bytes | Path], Manifest, dict[str, Any]]:
    """Writes every graph under `folder`; returns members, completed manifest and figures."""
    members: dict[str, bytes | Path] = {}
    figures: dict[str, Any] = {}
    board = settings.target in GPU_TARGETS or settings.precision != "int8"
    for name, model in models.items():
        if settings.form.endswith("typed"):
            manifest = _narrow_cache(model, manifest, name)
        progress(f"checking {name}: {len(model.graph.node)} nodes")
        require_clean(model, name, board=board)
        try:
            onnx.checker.check_model(model, full_check=False)
        except onnx.checker.ValidationError as error:
            reason = " ".join(str(error).split())[:200]
            raise EngineError(f"graph {name} is no valid ONNX: {reason}") from error
        figures[name] = {
            "nodes": len(model.graph.node),
            "operators": operator_counts(model),
            "opset": model.opset_import[0].version,
            "fp16_tensors": _count(model, onnx.TensorProto.FLOAT16),
            "int8_tensors": _count(model, onnx.TensorProto.INT8),
        }
        members |= split_weights(model, folder / "graphs", name)
    manifest = replace(
        manifest, members={name: describe(content) for name, content in members.items()}
    )
    report = {"graphs": figures, "precision": settings.precision, "target": settings.target}
    report["arithmetic"] = ARITHMETIC[settings.form]
    return members, manifest, report


def _narrow_cache(model: onnx.ModelProto, manifest: Manifest, name: str) -> Manifest:
    """Halves the bytes of a typed graph's cache, in place; returns the manifest that says so.

    On a board a step reads the cache beside the weights, at full context about as much as a fifth
    of them (12 layers of 768, 512 positions): float32 would be twice that, for the same values.
    """
    tensors = {t.role: t for spec in manifest.graphs if spec.name == name
               for t in (*spec.inputs, *spec.outputs)}  # fmt: skip
    kv, new = tensors.get("kv"), tensors.get("kv_new")
    if kv is None or new is None or not narrow_cache(model, kv.name, new.name):
        return manifest

    def halved(side: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(t, dtype="float16") if t.role in ("kv", "kv_new") else t for t in side)

    specs = (
        replace(spec, inputs=halved(spec.inputs), outputs=halved(spec.outputs))
        if spec.name == name
        else spec
        for spec in manifest.graphs
    )
    return replace(manifest, graphs=tuple(specs))


def _count(model: onnx.ModelProto, kind: int) -> int:
    """Counts the matrices of a dtype."""
    return sum(item.data_type == kind and len(item.dims) > 1 for item in model.graph.initializer)


def _check_all(
    graphs: Sequence[ExportGraph],
    manifest: Manifest,
    settings: ExportSettings,
    folder: Path,
    ids: np.ndarray,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Parity of every graph, and the golden vectors (as `golden`)."""
    draft = Bundle(path=folder, sha256="", manifest=manifest, folder=folder)
    engines = open_engines(draft, "onnxruntime")
    try:
        parity: dict[str, Any] = {}
        for graph in graphs:
            progress(f"comparing {graph.name} with PyTorch")
            parity[graph.name] = compare(
                graph, manifest, engines, ids, precision=settings.form, seed=settings.seed
            )
        noises = {graph.name: graph.corrupt for graph in graphs}
        golden = golden_vectors(manifest, engines, ids, noises, seed=settings.seed)
    finally:
        engines.close()
    return {"parity": parity, "golden": golden}
