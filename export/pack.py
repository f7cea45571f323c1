"""From a checkpoint folder to `model.dlm`: trace, check, record, pack, in that order.

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

from ..jetson.targets import target as find_target
from ..runtime.archive import describe
from ..runtime.bundle import REPORT_NAME, Bundle, write_bundle
from ..runtime.check import GOLDEN_NAME
from ..runtime.decoding import DecodingSettings
from ..runtime.engines import open_engines
from ..runtime.errors import BundleError, ConfigError, EngineError
from ..runtime.manifest import GraphSpec, Manifest
from ..runtime.manifest_check import TOKENIZER_NAME
from ..train.families.base import ExportGraph
from .budget import check_budget
from .card import CARD_NAME, read_own_text, write_card
from .fp16 import store_fp16
from .golden import golden_vectors
from .graph import WHOLE_CANVAS, Shape, choose_shapes, graph_specs
from .lint import operator_counts, require_clean
from .parity import compare
from .source import Source, load_source
from .trace import trace
from .typed import type_fp16
from .weights import split_weights

PRECISIONS = ("fp32", "fp16")
ARITHMETIC: Mapping[str, str] = {
    "fp32": "float32 weights and arithmetic",
    "fp16": "weights stored as float16 and widened while loading; arithmetic in float32",
    "fp16 typed": "float16 weights and arithmetic; norm statistics, softmax and angles in float32",
}
DEFAULT_BLOCK = 32
"""Prefill of causal models, which are trained on no block size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """What `dlm-export` was asked for."""

    target: str = "cpu"
    """A name of `jetson.targets.TARGETS`."""
    mode: str | None = None
    """Power mode that the plan is made for; None: the one the target boots in."""
    max_memory_mib: float | None = None
    """Memory that the bundle may take on its target; None: what the target has free."""
    precision: str = "fp32"
    """A name of PRECISIONS."""
    blocks: tuple[int | str, ...] = ()
    """Block sizes in positions, or "full" for the whole canvas, which masked models have anyway;
    empty: those the checkpoint was trained on."""
    contexts: tuple[int, ...] = ()
    """Context buckets in positions; empty: half of the checkpoint's positions, and all.

    The smaller bucket costs nothing on disk and saves 13 % of a run at dim 384 x 6 layers.
    """
    data: Path | None = None
    """Text to check with; None: a paragraph that ships with the exporter."""
    card: Path | None = None
    """Markdown that goes into the card as it is."""
    decoding: Mapping[str, Any] = field(default_factory=dict)
    """Default decoding settings of the bundle."""
    seed: int = 0
    """Of the masks that parity is measured under."""

    def __post_init__(self) -> None:
        find_target(self.target).mode(self.mode)
        if self.precision not in PRECISIONS:
            raise ConfigError(
                f"--precision {self.precision} is not available in this version: choose "
                f"{' or '.join(PRECISIONS)}"
            )
        DecodingSettings.from_json(self.decoding)


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
        checkpoint_path: The folder that dlm-train wrote.
        output: The bundle.
        settings: What it is made for.
        progress: Told what is being done.
        notes: Goes into the report as it is.

    Raises:
        DlmError: The checkpoint cannot be used, a check failed, or the bundle cannot be written.
    """
    check_output(output)
    source = load_source(
        checkpoint_path,
        precision=settings.precision,
        target=settings.target,
        decoding=settings.decoding,
    )
    own_text = read_own_text(settings.card)
    ids = source.text(settings.data)
    with tempfile.TemporaryDirectory(prefix="dlm-export-") as name:
        draft, members, report = draft_bundle(source, settings, Path(name), progress)
        report |= notes or {}
        report["plan"] = check_budget(
            draft,
            find_target(settings.target),
            settings.mode,
            progress,
            max_memory_mib=settings.max_memory_mib,
        )
        report |= _check_all(source.graphs, draft, settings, ids, progress)
        golden = report.pop("golden")
        members[TOKENIZER_NAME] = source.tokenizer_json.encode()
        members[GOLDEN_NAME] = golden
        members[REPORT_NAME] = (json.dumps(report, indent=1) + "\n").encode()
        members[CARD_NAME] = write_card(draft.manifest, report, own_text).encode()
        progress(f"packing {output}")
        digest = write_bundle(output, draft.manifest, members)
    return {"bundle": str(output), "sha256": digest, "bytes": output.stat().st_size, **report}


def draft_bundle(
    source: Source,
    settings: ExportSettings,
    folder: Path,
    progress: Callable[[str], None],
) -> tuple[Bundle, dict[str, bytes | Path], dict[str, Any]]:
    """Traces a checkpoint into an empty folder; returns the bundle to be, members and figures."""
    (folder / "graphs").mkdir()
    members, manifest, report = _trace_all(
        source.graphs, source.manifest, settings, folder, progress
    )
    return Bundle(path=folder, sha256="", manifest=manifest, folder=folder), members, report


def check_output(output: Path) -> None:
    """Finds out before minutes of work that the bundle could not be written."""
    folder = output.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or output.is_dir():
        raise BundleError(
            f"cannot write {output}: its folder is missing or not writable, or it is a folder; "
            "choose another -o"
        )
    if output.suffix != ".dlm":
        raise ConfigError(f"-o {output} must end in .dlm, by which dlm-run knows a bundle")


def _shapes(manifest: Manifest, settings: ExportSettings) -> tuple[Shape, ...]:
    causal = bool(manifest.model.get("causal", False))
    most = manifest.max_position
    canvas = manifest.mask_token_id is not None
    if WHOLE_CANVAS in settings.blocks and not canvas:
        raise ConfigError(
            f"--block {WHOLE_CANVAS} is the whole canvas of a masked model; family "
            f"{manifest.family} has none: leave it out"
        )
    blocks = tuple(size for size in settings.blocks if isinstance(size, int))
    if not settings.blocks:
        # Blocks that a masked model has not learnt would decode, but badly.
        untrained = (min(DEFAULT_BLOCK, most),) if causal else ()
        blocks = tuple(size for size in manifest.block_sizes if 1 < size < most) or untrained
    return choose_shapes(
        blocks=blocks,
        contexts=settings.contexts or tuple({max(most // 2, 1), most}),
        max_position=most,
        causal=causal,
        canvas=canvas,
    )


def _trace_all(
    graphs: Sequence[ExportGraph],
    manifest: Manifest,
    settings: ExportSettings,
    folder: Path,
    progress: Callable[[str], None],
) -> tuple[dict[str, bytes | Path], Manifest, dict[str, Any]]:
    """Writes every graph under `folder`; returns members, completed manifest and figures."""
    shapes = _shapes(manifest, settings)
    traced_at = max(shapes, key=lambda shape: shape.context)
    members: dict[str, bytes | Path] = {}
    specs: list[GraphSpec] = []
    figures: dict[str, Any] = {}
    for graph in graphs:
        progress(f"tracing {graph.name}")
        # A dimension of 1 would be traced as a constant.
        model = trace(graph, replace(traced_at, block=max(traced_at.block, 2)))
        num_fp16 = _convert(model, settings)
        progress(f"checking {graph.name}: {len(model.graph.node)} nodes")
        require_clean(model, graph.name)
        try:
            onnx.checker.check_model(model, full_check=False)
        except onnx.checker.ValidationError as error:
            reason = " ".join(str(error).split())[:200]
            raise EngineError(f"graph {graph.name} is no valid ONNX: {reason}") from error
        figures[graph.name] = {
            "nodes": len(model.graph.node),
            "operators": operator_counts(model),
            "opset": model.opset_import[0].version,
            "fp16_tensors": num_fp16,
        }
        members |= split_weights(model, folder / "graphs", graph.name)
        file = f"graphs/{graph.name}.onnx"
        specs += graph_specs(graph, shapes, file=file, precision=settings.precision)
    manifest = replace(
        manifest,
        graphs=tuple(specs),
        members={name: describe(content) for name, content in members.items()},
    )
    report = {"graphs": figures, "precision": settings.precision, "target": settings.target}
    report["arithmetic"] = ARITHMETIC[_form(settings)]
    return members, manifest, report


def _form(settings: ExportSettings) -> str:
    """Returns the key of ARITHMETIC and of parity's tolerances."""
    # On a board float16 stands in the ONNX itself, as TensorRT wants it.
    typed = settings.precision == "fp16" and find_target(settings.target).is_gpu
    return "fp16 typed" if typed else settings.precision


def _convert(model: onnx.ModelProto, settings: ExportSettings) -> int:
    """Gives a graph its precision, in place; returns how many weights became float16."""
    match _form(settings):
        case "fp32":
            return 0
        case "fp16":
            return store_fp16(model)
        case "fp16 typed":
            return type_fp16(model)
        case form:
            raise AssertionError(form)


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
        for graph in graphs:
            progress(f"comparing {graph.name} with PyTorch")
            parity[graph.name] = compare(
                graph, manifest, engines, ids, precision=_form(settings), seed=settings.seed
            )
        golden = golden_vectors(manifest, engines, ids, seed=settings.seed)
    finally:
        engines.close()
    return {"parity": parity, "golden": golden}
