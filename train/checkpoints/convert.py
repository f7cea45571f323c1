"""Makes a checkpoint of a family without training: of a public one, or one of another family."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...runtime.errors import ConfigError
from ..config import DEFAULT_CONTEXT
from ..data.tokenizer import needed_tokens, prepared_tokenizer, special_ids, vocab_size_of
from ..families import FAMILIES
from ..families.base import Family
from .architectures import WHOLE_CANVAS
from .checkpoint import Checkpoint, write_checkpoint
from .start import Start, read_model


def resolve_config(
    family: Family, options: Mapping[str, Any], special: Mapping[str, int], context: int
) -> dict[str, Any]:
    """Makes the family's config.json.

    Args:
        options: Its options. A `vocab_size` in them is the number of rows that a checkpoint brings,
            a `context` the positions that it knows.
        special: Ids of the special tokens, and `vocab_size`: what the tokenizer needs.
    """
    given = dict(options)
    rows = max(special["vocab_size"], given.pop("vocab_size", 0))
    known = given.pop("context", 0)
    config = family.make_config({**given, **special, "vocab_size": rows, "context": context})
    if 0 < known < context:
        print(f"{context} positions: the model knows {known} so far", file=sys.stderr)
    if config["model"].get("causal") and known > context:
        # What a causal model learnt on longer sequences stays; others denoise whole canvases.
        config["model"]["context"] = known
    return config


def _positions(start: Start, asked: int | None, known: int | None) -> int:
    """The positions asked for, or those that the checkpoint knows; ConfigError for more.

    Args:
        known: Those of a public checkpoint.
    """
    if known is None and start.shape is not None:
        known = start.shape.context
    if known is None:
        return DEFAULT_CONTEXT if asked is None else asked
    if asked is not None and asked > known:
        raise ConfigError(
            f"--context {asked}: the checkpoint knows {known} positions, and conversion teaches it "
            "no more; leave it out, or train on longer sequences"
        )
    return known if asked is None else asked


def convert(
    init: str, out: str, family_name: str, options: Mapping[str, Any], context: int | None
) -> dict[str, Any]:
    """Writes the checkpoint `init` as one of a family.

    Args:
        init: Folder, hub name or GGUF file.
        context: Positions of the result; a causal model keeps what it knows beyond. None: those
            that the checkpoint knows.

    Returns:
        A summary as `train` gives it.

    Raises:
        DlmError: The checkpoint cannot be read, or is not one for this family.
    """
    if family_name not in FAMILIES:
        raise ConfigError(f"family {family_name!r}: choose one of {', '.join(FAMILIES)}")
    start = read_model(init)
    if Path(out).resolve() == start.checkpoint.path.resolve():
        raise ConfigError(f"--out {out} is the folder of --init; give another one")
    made = _converted(start, init, family_name, options, context)
    write_checkpoint(Path(out), made.config, made.weights, made.tokenizer_json, made.companions)
    return {
        "checkpoint": out,
        "status": "converted",
        "steps": 0,
        "tokens_seen": 0,
        "seconds": 0.0,
        "best_step": 0,
        "held_out": {},
    }


def open_any(
    where: str | Path, blocks: Sequence[int | str] = (), tokenizer: str | None = None
) -> Checkpoint:
    """Reads a checkpoint: one of ours, or a public one, which takes its architecture's family.

    Args:
        where: Folder, hub name or GGUF file.
        blocks: Block sizes of a public diffusion model that names none.
        tokenizer: Where the tokenizer of a checkpoint is that has none; see `tokenizer_file`.
    """
    start = read_model(where, tokenizer)
    if "family" in start.checkpoint.config:
        return start.checkpoint
    family = start.family
    assert family is not None
    if start.facts is not None and start.facts.block is None and blocks:
        sizes = [size for size in blocks if isinstance(size, int)]
        block = max(sizes) if len(sizes) == len(blocks) else WHOLE_CANVAS
        facts = replace(start.facts, block=block, block_source="--block")
        said = {"block_from": facts.block_source, "decoding": facts.decoding}
        start = replace(start, facts=facts, source={**start.source, **said})
    return _converted(start, str(where), family, {}, None)


def _converted(
    start: Start, init: str, family_name: str, options: Mapping[str, Any], context: int | None
) -> Checkpoint:
    """The checkpoint `start` as one of a family; see `convert`."""
    family = FAMILIES[family_name]
    tokens = needed_tokens(start.framing, mask=family.has_mask)
    tokenizer = prepared_tokenizer(start.checkpoint.tokenizer_json, tokens)
    special = {**special_ids(tokenizer, start.framing), "vocab_size": vocab_size_of(tokenizer)}
    given = start.options(options, family_name)
    positions = _positions(start, context, given.get("context"))
    config = resolve_config(family, given, special, positions)
    with torch.device("meta"):
        module = family.make_model(config["model"])
    config["training"] = {"settings": {"init": init}, "converted": True}
    if start.source:
        config["source"] = dict(start.source)
    return Checkpoint(
        path=start.checkpoint.path,
        config=config,
        weights=start.fitting(module, tokenizer),
        tokenizer_json=tokenizer.to_str(),
        companions=start.companions(tokenizer),
    )
