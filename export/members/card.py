"""`card.md`: what a person should know about a bundle before using it, written from its facts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...runtime.bundle.manifest import Manifest, dims_text
from ...runtime.errors import DataError

CARD_NAME = "card.md"
MAX_OWN_BYTES = 1 << 18


def read_own_text(path: Path | None) -> str:
    """Returns the author's part of the card, empty without a file; raises DataError."""
    if path is None:
        return ""
    try:
        data = path.read_bytes()
        if len(data) > MAX_OWN_BYTES:
            raise DataError(f"--card {path} has more than {MAX_OWN_BYTES >> 10} KiB: shorten it")
        return data.decode("utf-8").strip() + "\n\n"
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--card {path} cannot be read as UTF-8 text: {error}") from error


def _table(rows: Mapping[str, Any]) -> str:
    lines = [f"| {key} | {value} |" for key, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines]) + "\n"


def _training(provenance: Mapping[str, Any]) -> dict[str, Any]:
    training = provenance.get("training") or {}
    run_state = training.get("run_state") or {}
    settings = training.get("settings") or {}
    source = provenance.get("source") or {}
    known = {
        "made from": settings.get("init"),
        "weights of": source.get("name"),
        "revision": source.get("revision"),
        "licence of the weights": source.get("licence"),
        "SHA-256 of the checkpoint": provenance.get("checkpoint_sha256"),
        "trained on": settings.get("data"),
        "tokens seen": training.get("tokens_seen"),
        "steps": run_state.get("step"),
        "SHA-256 of the data": training.get("data_sha256"),
    }
    return {
        key: f"{value:,}" if isinstance(value, int) else value
        for key, value in known.items()
        if value is not None
    }


def write_card(manifest: Manifest, report: Mapping[str, Any], own_text: str) -> str:
    """Returns the card: the author's text, then facts and parity."""
    model = manifest.model
    facts = {
        "family": manifest.family,
        "parameters": f"{model['num_parameters']:,}",
        "vocabulary": f"{manifest.vocab_size:,}",
        "positions": manifest.max_position,
        "block sizes trained": ", ".join(map(str, manifest.block_sizes)),
        "precision": f"{manifest.precision} ({report['arithmetic']})",
        "target": manifest.target,
        **_training(manifest.provenance),
    }
    shapes = "\n".join(
        f"| {spec.name} | {dims_text(spec.dims)} | {spec.purpose} |" for spec in manifest.graphs
    )
    parity = "\n".join(
        f"| {shape['graph']} | {dims_text(shape['dims'])} "
        f"| {shape['against_torch']['max_relative_error']:.1e} "
        f"| {shape['against_torch']['top1_agreement']:.2%} "
        f"| {shape['against_torch']['mean_divergence_nats']:.1e} |"
        for graph in report["parity"].values()
        for shape in graph["shapes"]
    )
    quality = report.get("quality")
    lost = "" if quality is None else _lost(quality)
    return (
        f"{own_text}## Facts\n\n{_table(facts)}\n"
        f"## Graph shapes\n\n| graph | dimensions | run to |\n|---|---|---|\n{shapes}\n\n"
        "## Parity with PyTorch in float32\n\n"
        "| graph | dimensions | largest relative error | same top-1 | divergence, nats |\n"
        f"|---|---|---|---|---|\n{parity}\n"
        f"{lost}"
    )


def _lost(quality: Mapping[str, Any]) -> str:
    """What the bundle's precision costs, in the words of its report."""
    lines = [*quality["findings"], *quality["warnings"]]
    return "\n## What the precision costs\n\n" + "".join(f"- {line}\n" for line in lines)
