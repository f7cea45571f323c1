"""A checkpoint folder made ready to be traced: graphs with its weights, and a manifest begun."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..calibration.canvases.texts import find_text
from ..jetson.targets import target as find_target
from ..runtime.bundle.manifest import Manifest
from ..runtime.cli.decoding import chosen_rule_note
from ..runtime.errors import CalibrationError, ConfigError
from ..runtime.families.table import read_rule, with_rule
from ..runtime.models.shelf import forbids_commerce
from ..runtime.text.chat_template import ChatTemplate
from ..runtime.text.tokenizer import Tokenizer
from ..train.checkpoints.checkpoint import read_json
from ..train.checkpoints.convert import open_any
from ..train.checkpoints.hub import find_checkpoint
from ..train.evaluate import open_model
from ..train.families.base import ExportGraph
from .checks.canvases import text_ids
from .members.chat import read_chat
from .members.import_report import import_report, write_report
from .members.provenance import provenance
from .settings import ExportSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Traceable:
    """A checkpoint ready to be traced."""

    graphs: tuple[ExportGraph, ...]
    """With the checkpoint's weights."""
    manifest: Manifest
    """Without graphs and members."""
    tokenizer_json: str
    config: Mapping[str, Any] = field(default_factory=dict)
    """The checkpoint's config.json."""
    chat: ChatTemplate | None = None
    """The text around the messages of a conversation, if the checkpoint has a template."""
    notes: tuple[str, ...] = ()
    """What a user should know of: a rule that an option chose, a template that cannot be used."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer."""
        return Tokenizer(self.tokenizer_json)

    def text(self, data: Path | None) -> np.ndarray:
        """Real text (max_position,) int32 to measure on."""
        manifest = self.manifest
        return text_ids(self.tokenizer, manifest.framing, manifest.max_position, data)


def load_source(checkpoint_path: Path, settings: ExportSettings) -> Traceable:
    """Reads a checkpoint; raises DlmError if it cannot be used."""
    if settings.needs_text:
        _require_text(checkpoint_path, settings)
    checkpoint = open_any(checkpoint_path, settings.blocks, settings.tokenizer)
    config = checkpoint.config
    family, model = open_model(checkpoint)
    own = read_rule({}, family.name)
    authors = dict(config.get("source", {}).get("decoding", {}))
    if settings.decoding:  # an option may belong to another rule than theirs
        authors.pop("rule", None)
    decoding = with_rule({**authors, **settings.decoding}, own, family.name)
    rule_note = ""
    if settings.decoding:
        rule_note = chosen_rule_note(settings.decoding, own, read_rule(decoding, family.name))
    manifest = family.manifest(
        config,
        model,
        target=settings.target,
        precision=settings.precision,
        decoding=decoding,
        provenance=provenance(checkpoint),
    )
    tokenizer = Tokenizer(checkpoint.tokenizer_json)
    if tokenizer.vocab_size > manifest.vocab_size:  # spare rows of a model do no harm
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {manifest.vocab_size}: "
            "the checkpoint's files do not belong together"
        )
    if settings.import_report is not None:
        text = text_ids(tokenizer, manifest.framing, manifest.max_position, settings.data)
        report = import_report(family, model, config, manifest.provenance, tokenizer, text)
        write_report(settings.import_report, report)
    graphs = _graphs_for(settings.target, family.graphs(model, config))
    thinking = None if manifest.mask_token_id is None else False
    chat, chat_note = read_chat(checkpoint.companions, checkpoint.tokenizer_json, thinking)
    return Traceable(
        graphs=graphs,
        chat=chat,
        notes=tuple(filter(None, (rule_note, chat_note, _licence_note(config)))),
        manifest=manifest,
        tokenizer_json=checkpoint.tokenizer_json,
        config=config,
    )


def _licence_note(config: Mapping[str, Any]) -> str:
    """What a user should know of the licence of public weights; empty where nothing says it."""
    licence = config.get("source", {}).get("licence", "")
    if not licence:
        return ""
    forbids = "; it forbids commercial use" if forbids_commerce(licence) else ""
    return f"licence of the weights, as their card names it: {licence}{forbids} (kept in card.md)"


def _require_text(checkpoint_path: Path, settings: ExportSettings) -> None:
    """Raises CalibrationError, before weights are read, if there is no text to calibrate on."""
    found = find_checkpoint(checkpoint_path)
    config = {} if found.is_file() else read_json(found)
    if find_text(settings.calibration_data, config) is None:
        raise CalibrationError(
            f"--precision {settings.precision} needs --calibration-data FILE, documents of the "
            "kind that the model will write (the text that training was validated on is not here), "
            "or --uncalibrated"
        )


def _graphs_for(target: str, graphs: Sequence[ExportGraph]) -> tuple[ExportGraph, ...]:
    """Returns the graphs to export for a target: in parts where few rows of a head are wanted.

    A board reads the head's matrix in every run anyway, and reading it twice costs more than
    computing it for all rows; on a CPU arithmetic is what costs.
    """
    if find_target(target).is_gpu:
        return tuple(graphs)
    return tuple(part for graph in graphs for part in (graph.parts or (graph,)))
