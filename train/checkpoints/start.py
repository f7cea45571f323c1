"""What `--init` starts from: one of our checkpoints, or a public model (Hugging Face folder, GGUF).

The model's shape and the tokenizer come from it. A mask (or end-of-text) token that the tokenizer
lacks is added; its row of the embedding is a spare one where the table has more rows than the
tokenizer has ids, else a new one, and starts as the mean of all others. Knows no family.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from ...runtime.errors import CheckpointError, ConfigError, brief
from ...runtime.files import parse_json
from ..data.tokenizer import EOS_TOKEN, MASK_TOKEN, load_tokenizer, vocab_size_of
from ..nn.config import SHAPE_OPTIONS, SIZES, ModelConfig
from .architectures import HEAD, MASK_KEYS, Architecture
from .checkpoint import (
    Checkpoint,
    check_finite,
    fitting_weights,
    read_companions,
    read_config,
    read_files,
    read_json,
)
from .ddit import flat_config
from .denoising import Facts, read_denoising
from .gguf import SUFFIX, read_gguf
from .hub import (
    GENERATION_CONFIG,
    SPECIAL_TOKENS,
    TOKENIZER_CONFIG,
    checkpoint_folder,
    read_source,
    tokenizer_file,
)
from .hugging_face import find_architecture, read_shape, read_tensors
from .mamba_ssm import TrunkStart, is_mamba_ssm, read_mamba_ssm
from .tensor_files import WEIGHTS, tensor_names

_PLAIN = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A checkpoint to start from."""

    checkpoint: Checkpoint
    """Its weights under our names."""
    shape: ModelConfig | None
    """None: of a family whose models have a shape of their own, which has to be given again."""
    framing: Mapping[str, Any]
    """See `read_framing`."""
    family: str | None = None
    """Of a public model: the family that it is of as it is published."""
    facts: Facts | None = None
    """Of a public diffusion model: how it denoises."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """Of a public model: see `read_source`."""

    def options(self, given: Mapping[str, Any], family: str) -> dict[str, Any]:
        """The options of a family: what was given, and the rest from the checkpoint.

        `vocab_size` is the number of rows there are, `context` the positions of a public model.

        Raises:
            CheckpointError: A public diffusion model does not say which blocks it knows.
        """
        if self.shape is None:
            return dict(given)
        own = {name: getattr(self.shape, name) for name in SHAPE_OPTIONS}
        if "size" in given:
            own = {name: value for name, value in own.items() if name not in SIZES}
        if self.shape.backbone != "native":
            own |= {"vocab_size": self.shape.vocab_size, "context": self.shape.context}
        if self.facts is not None and family == self.family and not given.get("block_sizes"):
            own |= self.facts.options(self.shape.context, str(self.checkpoint.path))
        config = self.checkpoint.config
        if config.get("logit_shift") and family == config.get("family"):
            own["logit_shift"] = config["logit_shift"]
        return {**own, **given}

    def load(self, module: nn.Module, tokenizer: Tokenizer) -> None:
        """Copies the weights into a model that was made for `tokenizer`; raises CheckpointError."""
        module.load_state_dict(self.fitting(module, tokenizer))

    def fitting(self, module: nn.Module, tokenizer: Tokenizer) -> dict[str, torch.Tensor]:
        """Gives the weights as a model's state, which may be on the device `meta`.

        Args:
            tokenizer: That of training: the checkpoint's, and perhaps a mask token.

        Raises:
            CheckpointError: The weights or the vocabulary do not fit.
        """
        before = _tokenizer(self.checkpoint)
        _check_tokenizers(before, tokenizer)
        weights = dict(self.checkpoint.weights)
        wanted = module.state_dict()
        fresh = [name for name in wanted if name.endswith(".qkv.bias") and name not in weights]
        weights |= {name: torch.zeros(wanted[name].shape) for name in fresh}
        if fresh:
            _say(f"the checkpoint has no biases of queries, keys and values: {len(fresh)} are 0")
        added = _added(before, tokenizer)
        if self.facts is not None:  # its mask has a row, whether the tokenizer names it or not
            added.pop(MASK_TOKEN, None)
        if added:
            weights = _with_rows(weights, added)
        return fitting_weights(module, replace(self.checkpoint, weights=weights))

    def companions(self, tokenizer: Tokenizer) -> dict[str, str]:
        """The tokenizer's companions, which name the tokens added to it for transformers."""
        kept = dict(self.checkpoint.companions)
        try:
            config = parse_json(kept.get(TOKENIZER_CONFIG, "{}"))
            known = config.get("added_tokens_decoder")
        except (ValueError, AttributeError):  # not ours to mend; export says what it lacks
            return kept
        added = _added(_tokenizer(self.checkpoint), tokenizer)
        if added and isinstance(known, dict):  # without the list, transformers reads tokenizer.json
            config["added_tokens_decoder"] = known | {
                str(number): {"content": token, **_PLAIN, "special": True}
                for token, number in added.items()
            }
            kept[TOKENIZER_CONFIG] = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        return kept


def _added(before: Tokenizer, now: Tokenizer) -> dict[str, int]:
    """The special tokens that only `now` has, and their ids."""
    return {
        token: number
        for token in (EOS_TOKEN, MASK_TOKEN)
        if (number := now.token_to_id(token)) is not None and before.token_to_id(token) is None
    }


def read_start(where: str | Path, tokenizer: str | Path | None = None) -> Start | TrunkStart:
    """Reads the checkpoint of a folder, a hub name or a GGUF file; raises CheckpointError.

    Args:
        tokenizer: Where the tokenizer of a checkpoint is that has none; see `tokenizer_file`.
    """
    if str(where).endswith(SUFFIX):
        if tokenizer is not None:
            raise CheckpointError(f"{where} has a tokenizer of its own: leave --tokenizer out")
        return _read_file(Path(where))
    folder = checkpoint_folder(where)
    config = read_json(folder)
    if is_mamba_ssm(config):
        return read_mamba_ssm(folder, config)
    if _is_public(config):
        config = _completed(config, folder)
        shape = read_shape(config, str(folder))
        known = find_architecture(config, str(folder))
        sees_noise = known.denoising is not None and known.denoising.sees_noise
        model = {"model": shape.to_json()}
        checkpoint = read_files(folder, model, tokenizer, sees_noise=sees_noise)
        return _foreign(checkpoint, shape, config, known, read_source(where, folder))
    config = read_config(folder)
    plain = set(config["model"]) <= {item.name for item in fields(ModelConfig)}
    shape = ModelConfig.from_json(config["model"]) if plain else None
    checkpoint = read_files(folder, config, tokenizer)
    framing = _own_framing(config, _tokenizer(checkpoint))
    return Start(checkpoint=checkpoint, shape=shape, framing=framing)


def _is_public(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is one that others wrote."""
    return "family" not in config and ("model_type" in config or flat_config(config) is not None)


def _completed(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A public config.json with what other files of the folder say in its place."""
    generation = _settings(read_companions(folder), GENERATION_CONFIG)
    found = {key: generation[key] for key in MASK_KEYS if isinstance(generation.get(key), int)}
    if "tie_word_embeddings" not in config and (folder / WEIGHTS).is_file():
        found["tie_word_embeddings"] = HEAD not in tensor_names(folder / WEIGHTS)
    flat = flat_config(config) or config
    if "cond_dim" in flat:
        found["condition_dim"] = flat["cond_dim"]
    return {**found, **flat}


def read_model(where: str | Path, tokenizer: str | Path | None = None) -> Start:
    """Reads a checkpoint that is a whole model, as `read_start`; raises CheckpointError."""
    found = read_start(where, tokenizer)
    if isinstance(found, TrunkStart):
        raise CheckpointError(
            f"{where} holds layers alone, no embedding of ours: train a model from them with --init"
        )
    return found


def _read_file(path: Path) -> Start:
    found = read_gguf(path)
    shape = read_shape(found.config, str(path))
    checkpoint = Checkpoint(
        path=path,
        config={"model": shape.to_json()},
        weights=read_tensors(found.tensors, shape, str(path)),
        tokenizer_json=found.tokenizer_json,
        companions=found.companions,
    )
    check_finite(checkpoint.weights, str(path))
    known = find_architecture(found.config, str(path))
    return _foreign(checkpoint, shape, found.config, known, {"name": path.name})


def _foreign(
    checkpoint: Checkpoint,
    shape: ModelConfig,
    config: Mapping[str, Any],
    known: Architecture,
    source: Mapping[str, Any],
) -> Start:
    """A public checkpoint; raises CheckpointError for more ids than the embedding has rows."""
    tokenizer = _tokenizer(checkpoint)
    ids = vocab_size_of(tokenizer)
    if ids > shape.vocab_size:
        raise CheckpointError(
            f"{checkpoint.path}: the tokenizer has {ids} ids, the embedding {shape.vocab_size} "
            "rows; the two belong to different checkpoints: copy both from one"
        )
    framing, facts = _framing(config, tokenizer, checkpoint.companions, known, source["name"])
    if facts is not None:
        said = {"mask_from": facts.mask_source, "block_from": facts.block_source}
        source = {**source, "architecture": known.name, **said, "decoding": facts.decoding}
        tokenizer_json = _with_special(checkpoint.tokenizer_json, facts.mask_token_id)
        checkpoint = replace(checkpoint, tokenizer_json=tokenizer_json)
    return Start(
        checkpoint=checkpoint,
        shape=shape,
        framing=framing,
        family=known.family,
        facts=facts,
        source=source,
    )


def _with_special(tokenizer_json: str, token_id: int) -> str:
    """A tokenizer whose token of this id, if it has one, is never read out of a text."""
    content = parse_json(tokenizer_json)
    for token in content.get("added_tokens") or ():
        if token["id"] == token_id and not token["special"]:
            token.update(special=True, normalized=False)
            return json.dumps(content, ensure_ascii=False)
    return tokenizer_json


def read_framing(where: str | Path, tokenizer: str | Path | None = None) -> dict[str, Any]:
    """Reads what a checkpoint has around a text, without its weights.

    Args:
        tokenizer: As `read_start` takes it.

    Returns:
        `start_ids`, in front of a text (None: the end of text); `eos_token_id`, which ends a
        document, unless nothing says so; `end_ids`, which end a text as well; `mask_token_id`, if
        the tokenizer has the mask under a name that is not ours.
    """
    if str(where).endswith(SUFFIX):
        found = read_gguf(Path(where), tensors=False)
        own = Tokenizer.from_str(found.tokenizer_json)
        known = find_architecture(found.config, str(where))
        return _framing(found.config, own, found.companions, known, str(where))[0]
    folder = checkpoint_folder(where)
    config = read_json(folder)
    if is_mamba_ssm(config):
        return {}
    if not _is_public(config):
        return _own_framing(read_config(folder), load_tokenizer(folder, ()))
    config, place = _completed(config, folder), tokenizer_file(folder, tokenizer)
    known, name = find_architecture(config, str(folder)), read_source(where, folder)["name"]
    companions = read_companions(folder)
    return _framing(config, load_tokenizer(place, ()), companions, known, name)[0]


def _own_framing(config: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "eos_token_id": config["eos_token_id"],
        "start_ids": config.get("start_ids"),
        "end_ids": config.get("end_ids") or [],
        **_foreign_mask(tokenizer, config.get("mask_token_id")),
    }


def _foreign_mask(tokenizer: Tokenizer, mask: int | None) -> dict[str, int]:
    """The mask's id where the tokenizer has it under a name that is not ours."""
    name = None if mask is None else tokenizer.id_to_token(mask)
    return {} if mask is None or name in (None, MASK_TOKEN) else {"mask_token_id": mask}


def _framing(
    config: Mapping[str, Any],
    tokenizer: Tokenizer,
    companions: Mapping[str, str],
    known: Architecture,
    name: str,
) -> tuple[dict[str, Any], Facts | None]:
    """What a public checkpoint has around a text, and how it denoises if it does; files that cannot
    be read say nothing."""
    settings = _settings(companions, TOKENIZER_CONFIG)
    named = {key: _id_of(tokenizer, settings.get(f"{key}_token")) for key in ("bos", "eos")}
    generation = _settings(companions, GENERATION_CONFIG).get("eos_token_id")
    listed: list[Any] = []
    for found in (config.get("eos_token_id"), generation, named["eos"]):
        listed += found if isinstance(found, list) else [found]
    facts = None
    if known.denoising is not None:
        both = {**_settings(companions, SPECIAL_TOKENS), **settings}
        facts = read_denoising(config, known, tokenizer, both, name)
        listed += facts.end_ids
    ends = list(dict.fromkeys(token for token in listed if _is_token(tokenizer, token)))
    start = list(_put_in_front(tokenizer))
    if facts is not None and facts.denoising.start is not None:
        number = tokenizer.token_to_id(facts.denoising.start)
        start = [] if number is None else [number]
    if settings.get("add_bos_token") is False:
        start = []
    elif settings.get("add_bos_token") is True and named["bos"] is not None:
        start = [named["bos"]]
    framing: dict[str, Any] = {"start_ids": start, "end_ids": ends[1:]}
    if ends:
        framing["eos_token_id"] = ends[0]
    if facts is not None:
        framing |= _foreign_mask(tokenizer, facts.mask_token_id)
    return framing, facts


def _is_token(tokenizer: Tokenizer, token: Any) -> bool:
    return type(token) is int and token >= 0 and tokenizer.id_to_token(token) is not None


def _settings(companions: Mapping[str, str], name: str) -> dict[str, Any]:
    try:
        found = parse_json(companions.get(name, "{}"))
    except ValueError:  # not ours to mend; export says what it lacks
        return {}
    return found if isinstance(found, dict) else {}


def _id_of(tokenizer: Tokenizer, token: Any) -> int | None:
    """The id of a special token, which may be an object with its text as `content`."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return tokenizer.token_to_id(text) if isinstance(text, str) else None


def _put_in_front(tokenizer: Tokenizer) -> Sequence[int]:
    """The ids that a tokenizer itself puts in front of a text."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a").ids
    for size in range(len(whole) - len(plain) + 1):
        if whole[size : size + len(plain)] == plain:
            return whole[:size]
    return ()


def tokenizer_of(where: str | Path) -> str | None:
    """The checkpoint as `--tokenizer` takes it; None if it has no tokenizer."""
    if str(where).endswith(SUFFIX):
        return str(where)
    folder = checkpoint_folder(where)
    return str(folder) if (folder / "tokenizer.json").is_file() else None


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    try:
        return Tokenizer.from_str(checkpoint.tokenizer_json)
    except Exception as error:  # The Rust reader raises bare Exception.
        raise CheckpointError(
            f"{checkpoint.path}: tokenizer.json is damaged ({brief(error, 100)}); copy it again"
        ) from error


def _check_tokenizers(before: Tokenizer, now: Tokenizer) -> None:
    """Raises ConfigError unless every token of `before` has the same id now."""
    have = now.get_vocab(with_added_tokens=True)
    for token, number in before.get_vocab(with_added_tokens=True).items():
        if have.get(token) != number:
            raise ConfigError(
                f"--tokenizer is another one than that of --init ({token!r} has id "
                f"{have.get(token)}, and {number} there): leave it out, the checkpoint has its own"
            )


def _with_rows(
    weights: dict[str, torch.Tensor], added: Mapping[str, int]
) -> dict[str, torch.Tensor]:
    """Gives the rows of added tokens in embedding and head the mean of the rows before them."""
    tables = [name for name in ("embed.weight", "head.weight") if name in weights]
    rows, first = len(weights["embed.weight"]), min(added.values())
    for token, number in added.items():
        where = f"spare row {number} of {rows}" if number < rows else f"new row {number}"
        _say(f"{token} takes the {where} of the embedding and starts as the mean of the others")
    grown: dict[int, torch.Tensor] = {}
    for name in tables:
        table = weights[name]
        if table.data_ptr() not in grown:
            longer = torch.zeros(max(rows, *(1 + row for row in added.values())), table.shape[1])
            longer[:rows] = table
            longer[list(added.values())] = table[:first].mean(dim=0)
            grown[table.data_ptr()] = longer
        weights[name] = grown[table.data_ptr()]
    return weights


def _say(text: str) -> None:
    print(text, file=sys.stderr)
