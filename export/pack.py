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
import torch

from ..runtime.archive import describe
from ..runtime.bundle import REPORT_NAME, Bundle, write_bundle
from ..runtime.check import GOLDEN_NAME
from ..runtime.decoding import DecodingSettings
from ..runtime.engines import open_engines
from ..runtime.errors import BundleError, ConfigError, EngineError
from ..runtime.manifest import GraphSpec, Manifest
from ..runtime.manifest_check import TOKENIZER_NAME
from ..runtime.tokenizer import Tokenizer
from ..train.checkpoint import Checkpoint, load_weights, read_checkpoint
from ..train.families import FAMILIES
from ..train.families.base import ExportGraph
from .canvases import text_ids
from .card import CARD_NAME, read_own_text, write_card
from .fp16 import store_fp16
from .golden import golden_vectors
from .graph import graph_specs
from .lint import operator_counts, require_clean
from .parity import compare
from .provenance import provenance
from .trace import trace
from .typed import type_fp16
from .weights import split_weights

TARGETS = ("cpu", "host", "orin-nano")
PRECISIONS = ("fp32", "fp16")
GPU_TARGETS = ("orin-nano",)
"""Targets whose graphs are typed: their float16 stands in the ONNX, as TensorRT wants it."""
ARITHMETIC: Mapping[str, str] = {
    "fp32": "float32 weights and arithmetic",
    "fp16": "weights stored as float16 and widened while loading; arithmetic in float32",
    "fp16 typed": "float16 weights and arithmetic; norm statistics, softmax and angles in float32",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """What `dlm-export` was asked for."""

    target: str = "cpu"
    """A name of TARGETS."""
    precision: str = "fp32"
    """A name of PRECISIONS."""
    blocks: tuple[int | str, ...] = ()
    """Block sizes in positions, or "full" for the whole canvas; empty: the family's choice,
    usually those the checkpoint was trained on."""
    contexts: tuple[int, ...] = ()
    """Context buckets in positions, of families with a cache; empty: the family's choice."""
    data: Path | None = None
    """Text to check with; None: a paragraph that ships with the exporter."""
    card: Path | None = None
    """Markdown that goes into the card as it is."""
    decoding: Mapping[str, Any] = field(default_factory=dict)
    """Default decoding settings of the bundle."""
    seed: int = 0
    """Of the masks that parity is measured under."""

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ConfigError(f"--target must be one of {', '.join(TARGETS)}, not {self.target!r}")
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
    with tempfile.TemporaryDirectory(prefix="dlm-export-") as name:
        folder = Path(name)
        (folder / "graphs").mkdir()
        members, manifest, report = _trace_all(graphs, manifest, settings, folder, progress)
        report |= _check_all(graphs, manifest, members, settings, folder, ids, progress)
        golden = report.pop("golden")
        members[TOKENIZER_NAME] = checkpoint.tokenizer_json.encode()
        members[GOLDEN_NAME] = golden
        members[REPORT_NAME] = (json.dumps(report, indent=1) + "\n").encode()
        members[CARD_NAME] = write_card(manifest, report, own_text).encode()
        progress(f"packing {output}")
        digest = write_bundle(output, manifest, members)
    return {"bundle": str(output), "sha256": digest, "bytes": output.stat().st_size, **report}


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
    folder: Path,
    progress: Callable[[str], None],
) -> tuple[dict[str, bytes | Path], Manifest, dict[str, Any]]:
    """Writes every graph under `folder`; returns members, completed manifest and figures."""
    members: dict[str, bytes | Path] = {}
    specs: list[GraphSpec] = []
    figures: dict[str, Any] = {}
    for graph in graphs:
        shapes = graph.shapes(settings.blocks, settings.contexts)
        traced_at = max(shapes, key=lambda shape: shape.context)
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
    typed = settings.precision == "fp16" and settings.target in GPU_TARGETS
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
    manifest: Manifest,
    members: Mapping[str, bytes | Path],
    settings: ExportSettings,
    folder: Path,
    ids: np.ndarray,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Parity of every graph, and the golden vectors (as `golden`)."""
    del members
    draft = Bundle(path=folder, sha256="", manifest=manifest, folder=folder)
    engines = open_engines(draft, "onnxruntime")
    try:
        parity: dict[str, Any] = {}
        for graph in graphs:
            progress(f"comparing {graph.name} with PyTorch")
            parity[graph.name] = compare(
                graph, manifest, engines, ids, precision=_form(settings), seed=settings.seed
            )
        noises = {graph.name: graph.corrupt for graph in graphs}
        golden = golden_vectors(manifest, engines, ids, noises, seed=settings.seed)
    finally:
        engines.close()
    return {"parity": parity, "golden": golden}
