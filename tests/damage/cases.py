"""The campaigns: what each damages, and what it then calls.

`prepare` makes the sound inputs once per folder, `try_case` damages one of them by a random source
and returns what came of it in a word. What it raises beside `DlmError` is a fault, and so is an
error of several lines.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from dlm_edge.runtime.errors import DlmError
from dlm_edge.runtime.pipeline import Pipeline

from . import kills
from .mutate import (
    ODD_NUMBERS,
    damage_bundle,
    damage_bytes,
    damage_header,
    damage_json_text,
)

MAX_LINE = 1000
"""Characters of an error: more is no line that anyone reads."""
FAMILIES = ("mdlm", "ar", "sedd", "tidar")


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """One kind of damage."""

    prepare: Callable[[Path], Any]
    """Makes or opens the sound inputs in a folder."""
    try_case: Callable[[Random, Path, Any], str]
    """Given a random source, an empty folder and what `prepare` gave: "fine" or another word."""
    seconds: float = 120.0
    """A case that takes longer hangs."""


def outcome(campaign: Campaign, rng: Random, folder: Path, inputs: Any) -> str:
    """Tries one case; returns the error's class, or what `try_case` says. Raises a fault."""
    try:
        return campaign.try_case(rng, folder, inputs)
    except DlmError as error:
        text = str(error)
        assert text, "an error without a message"
        assert len(text.splitlines()) == 1, f"an error of several lines: {text!r}"
        assert len(text) <= MAX_LINE, f"an error of {len(text)} characters: {text[:200]!r}"
        return type(error).__name__


def _bundles(folder: Path) -> dict[str, bytes]:
    """The bytes of a bundle per family."""
    return {Path(path).stem: Path(path).read_bytes() for path in _bundle_paths(folder)}


def _bundle_paths(folder: Path) -> list[str]:
    from family_bundles import make_family_bundle

    found = []
    for family in FAMILIES:
        path = folder / f"{family}.dlm"
        if not path.exists():
            make_family_bundle(folder, family)
        found.append(str(path))
    return found


def check_text(pipeline: Pipeline, result: Any, stop: tuple[str, ...] = ()) -> None:
    """What holds of every finished text: no mask in it, no stop string, no id out of range."""
    manifest = pipeline.manifest
    assert manifest.mask_token_id not in result.token_ids, "a mask among the tokens"
    assert all(0 <= token < manifest.vocab_size for token in result.token_ids)
    # The text around a template's gaps is the user's.
    written = [result.text] if result.gaps is None else result.gaps
    assert not any("<|mask|>" in text for text in written)
    for text in stop:
        assert text not in result.text, "a stop string in the text"


def _try_bundle(rng: Random, folder: Path, bundles: Mapping[str, bytes]) -> str:
    from dlm_edge.runtime.measure.check import check_bundle
    from dlm_edge.runtime.text.chat_template import read_chat_template

    path = folder / "x.dlm"
    data = damage_bundle(rng, bundles[rng.choice(sorted(bundles))])
    path.write_bytes(data)
    with Pipeline.load(path, engine="onnxruntime", threads=1) as pipeline:
        read_chat_template(pipeline.bundle)
        found = pipeline.generate("ab", max_tokens=6, seed=rng.randrange(99)).result()
        # A manifest that says another mask, and vouches for itself, is not damage but a choice.
        assert len(found.token_ids) <= 6
        check_bundle(pipeline.bundle, pipeline.model)
    return "fine"


def _open_any(path: Path) -> str:
    from dlm_edge.export.members.chat import read_chat
    from dlm_edge.train.checkpoints.convert import open_any
    from dlm_edge.train.checkpoints.start import read_framing

    read_framing(path)
    found = open_any(path)
    chat, why = read_chat(found.companions, found.tokenizer_json)
    assert chat is not None or "\n" not in why
    return "fine"


def _gguf_files(folder: Path) -> list[tuple[bytes, list[tuple[int, int]]]]:
    """Files and, of each, the places (offset, bytes) of its header's fields."""
    import gguf
    from gguf_files import random_model, write_gguf

    found = []
    for kind, pre, quantisation in (
        ("llama", "smollm", "F32"),
        ("llama", "llama-bpe", "Q4_1"),
        ("qwen2", "qwen2", "Q8_0"),
        ("qwen3", "qwen2", "F16"),
    ):
        path = folder / f"{kind}-{quantisation}.gguf"
        if not path.exists():
            write_gguf(path, random_model(kind), kind, pre, quantisation)
        places = []
        reader = gguf.GGUFReader(path)
        fields = [*reader.fields.values(), *(tensor.field for tensor in reader.tensors)]
        for field in fields:
            at = field.offset
            # A vocabulary has a thousand parts; the first and last say as much as all.
            parts = [(at := at + part.nbytes, part.nbytes) for part in field.parts]
            places.append([(end - size, size) for end, size in (*parts[:12], *parts[-4:])])
        found.append((path.read_bytes(), places))
    return found


def _try_gguf(rng: Random, folder: Path, files: Any) -> str:
    data, places = rng.choice(files)
    if rng.random() < 0.4:
        data = damage_bytes(rng, data)
    else:
        found = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 3))):
            at, size = rng.choice(rng.choice(places))
            if size in (1, 2, 4, 8) and rng.random() < 0.8:
                old = int.from_bytes(found[at : at + size], "little")
                value = rng.choice((0, 1, 2, 9, 8, 255, old + 1, old - 1, old * 2, 1 << 31, -1))
                found[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
            else:
                found[at : at + size] = rng.randbytes(size)
        data = bytes(found)
    path = folder / "x.gguf"
    path.write_bytes(data)
    return _open_any(path)


def _own_folders(folder: Path) -> list[Path]:
    from family_bundles import FAMILIES as OPTIONS
    from tiny_checkpoint import make_checkpoint

    for family in FAMILIES:
        if not (folder / family / "model.safetensors").exists():
            make_checkpoint(folder / family, family, **OPTIONS[family][0])
    return [folder / family for family in FAMILIES]


def _public_folders(folder: Path) -> list[Path]:
    """Folders as transformers writes them, one of several shards, each with a chat template."""
    from public_folders import make_public

    found = []
    for kind, shard in (("llama", "5GB"), ("qwen2", "60KB"), ("qwen3", "5GB")):
        place = folder / f"public-{kind}"
        if not (place / "tokenizer_config.json").exists():
            make_public(place, kind, shard=shard)
            (place / "chat_template.jinja").write_text(CHATML, "utf-8")
            (place / "tokenizer_config.json").write_text(
                '{"eos_token": {"content": "<|endoftext|>"}, "add_bos_token": false}', "utf-8"
            )
        found.append(place)
    return found


def _try_safetensors(rng: Random, folder: Path, sources: list[Path]) -> str:
    place = folder / "checkpoint"
    shutil.copytree(rng.choice(sources), place)
    file = rng.choice(sorted(place.glob("*.safetensors")))
    data = file.read_bytes()
    file.write_bytes(damage_header(rng, data) if rng.random() < 0.8 else damage_bytes(rng, data))
    return _open_any(place)


def _try_folder(rng: Random, folder: Path, sources: list[Path]) -> str:
    place = folder / "checkpoint"
    shutil.copytree(rng.choice(sources), place)
    for _ in range(rng.choice((1, 1, 2))):
        files = sorted(item for item in place.iterdir() if item.is_file())
        file = rng.choice(files)
        match rng.randrange(8):
            case 0:
                file.unlink()
                if rng.random() < 0.3:
                    file.mkdir()
                    break
            case 1:
                file.write_bytes(b"")
            case 2:
                shutil.copy(rng.choice(files), place / "copy")
                os.replace(place / "copy", file)
            case _ if file.suffix == ".json":
                try:
                    file.write_bytes(damage_json_text(rng, file.read_bytes()))
                except ValueError:
                    file.write_bytes(damage_bytes(rng, file.read_bytes()))
            case _:
                file.write_bytes(damage_bytes(rng, file.read_bytes()))
    return _open_any(place)


_CHATML = (
    "{% for message in messages %}",
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}",
    "{% endfor %}",
    "{% if add_generation_prompt %}",
    "{{ '<|im_start|>assistant\\n' }}",
    "{% endif %}",
)
CHATML = "".join(_CHATML)
_WHOLE = (
    *("{{ message.content }}", "{{ messages[0].content }}", "{{ bos_token }}", "{{ x.a }}"),
    *("\n", "{% set x = namespace(a=1) %}", "{% if message.role == 'user' %}U{% endif %}"),
    *("{{- '' -}}", "{{ raise_exception('no') }}", "{{ messages.__class__ }}"),
    *("{{ cycler.__init__ }}", "text"),
    *("{% generation %}{{ message.content }}{% endgeneration %}", "{{ 1/0 }}", "{% break %}"),
    *("{% macro m(a) %}{{ m(a) }}{% endmacro %}{{ m(1) }}", "{{ 'a' * 9999 }}", "{# #}", "\0"),
    *("é", "{{ range(99999)|list }}", "{{ undefined.x }}", "{{ message.content[9999] }}"),
    *("{{ [1][7] }}", "{% include 'x' %}", "{% import 'x' as y %}"),
    *("{{ ''.join(['a'] * 9999) }}", "{{ {}|tojson }}", "{{ '%s %d' % message }}"),
    *("{{ strftime_now('%d') }}", "</think>", "{{ loop.index0 }}"),
    *("{{ message.content.split('</think>')[-1] }}", "{{ [].append(1) }}"),
    *("{{ dict(a=1)['b'] }}", "{{ (1).__class__.__mro__ }}", "{{ 2 ** 2 ** 9 }}"),
    *("{{ messages|map('x')|list }}", "{{ [] < 1 }}", "{{ messages|sort }}"),
    *("{{ 'x'|int('y') }}", "{{ -'a' }}", "{{ message|tojson }}", "{{ ''[0] }}"),
    *("{{ '{:>99999999}'.format(1) }}", "{{ ('%99999999d' % 1)|length }}"),
    *("{{ message.pop('role') }}", "{{ messages|batch(0)|list }}", "{{ 'a'.encode('x') }}"),
    *("{{ lipsum(9) }}", "{{ caller() }}"),
    *("{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}", "{{ self.x() }}"),
)
"""Statements of a template, each whole."""


def _try_template(rng: Random, folder: Path, sources: Any) -> str:
    import json

    from dlm_edge.export.members.chat import CONFIG_NAME, PROCESSOR_NAME, TEMPLATE_NAME, read_chat

    parts = list(_CHATML)
    for _ in range(rng.randrange(4)):
        parts.insert(rng.randrange(len(parts) + 1), rng.choice(_WHOLE))
    template = "".join(parts)
    if rng.random() < 0.3:
        text = template.encode("utf-8", "replace")
        template = damage_bytes(rng, text).decode("utf-8", "replace")
    config: dict[str, Any] = {"bos_token": "<s>", "eos_token": rng.choice((None, "</s>", 3, {}))}
    companions = {}
    match rng.randrange(4):
        case 0:
            config["chat_template"] = template
        case 1:
            config["chat_template"] = [
                {"name": "default", "template": template},
                rng.choice(({}, 1)),
            ]
        case 2:
            companions[TEMPLATE_NAME] = template
        case 3:
            companions[PROCESSOR_NAME] = json.dumps({"chat_template": template})
    companions[CONFIG_NAME] = json.dumps(config)
    if rng.random() < 0.1:
        name = rng.choice(sorted(companions))
        companions[name] = damage_bytes(rng, companions[name].encode("utf-8", "replace")).decode(
            "utf-8", "replace"
        )
    chat, why = read_chat(companions, sources)
    assert "\n" not in why, why
    assert len(why) <= MAX_LINE, why[:200]
    return "no chat" if chat is None else "fine"


def _tokenizer(folder: Path) -> str:
    """A tokenizer with the special tokens of CHATML."""
    from tiny_checkpoint import byte_tokenizer
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(byte_tokenizer())
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", "<s>", "</s>"])
    return tokenizer.to_str()


def open_pipelines(folder: Path) -> dict[str, Pipeline]:
    """A pipeline per family, one with a batch, and the shipped model."""
    found = {
        Path(path).stem: Pipeline.load(path, engine="onnxruntime", threads=1)
        for path in _bundle_paths(folder)
    }
    found["shipped"] = Pipeline.load(None, engine="onnxruntime", threads=1)
    return found


_ALPHABETS = (
    "abc ABC",
    " \t\r\n\v\f\u00a0\u2003\u3000\u200b\ufeff",
    "\0\1\x1b\x7f\x80\x9f",
    "áñüßşžλЖ你好日本語한국어हिन्दीعربى",
    "\U0001f469\u200d\U0001f467\U0001f1e9\U0001f1ea\ufe0f\u20e3\U0001f3fd",
    "e\u0301a\u0308\u0335\u0336\u0489",
    "\u202a\u202e\u2066\u2069",
    "\ud800\udfff\udc00",
    "0123456789.,;:!?'\"`~@#$%^&*()[]{}<>|/\\_-+=",
    "\U0010ffff\ufffe\uffff\ufdd0",
)
_WORDS = ("<|mask|>", "<|endoftext|>", "<|im_start|>", "___", "\\___", "</s>", "{{", "%s", "\r\n")


def odd_text(rng: Random) -> str:
    """A prompt that no sensible person writes."""
    size = rng.choice((0, 1, 2, 5, 20, 100, 1000))
    if rng.random() < 0.02:
        size = 20_000
    letters = rng.choice((rng.choice(_ALPHABETS), "".join(_ALPHABETS)))
    # Half characters are refused at once: most prompts should come further than that.
    if rng.random() < 0.9:
        letters = "".join(c for c in letters if not "\ud800" <= c <= "\udfff") or "a"
    text = "".join(rng.choices(letters, k=size))
    for _ in range(rng.choice((0, 0, 1, 3))):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(_WORDS) + text[at:]
    return text * rng.choice((1, 1, 1, 3))


def _stream(pipeline: Pipeline, stop: tuple[str, ...], generation: Any) -> None:
    """Reads a generation as a terminal does: what came in pieces is the text."""
    pieces = "".join(span.text for span in generation if span.committed)
    result = generation.result()
    check_text(pipeline, result, stop)
    if not generation.fills:
        assert pieces == result.text, (pieces, result.text)


def _try_prompt(rng: Random, folder: Path, pipelines: Mapping[str, Pipeline]) -> str:
    pipeline = pipelines[rng.choice(sorted(pipelines))]
    text, seed = odd_text(rng), rng.randrange(1 << 32)
    # An odd prompt must come back: this is what makes infilling keep text byte for byte.
    ids = pipeline.tokenizer.encode(text)
    assert all(0 <= token < pipeline.manifest.vocab_size for token in ids)
    assert not set(ids) & pipeline.tokenizer.special_ids, "a prompt became a special token"
    if rng.random() < 0.15 and pipeline.manifest.mask_token_id is not None:
        _stream(pipeline, (), pipeline.infill(text, gap_tokens=rng.randrange(1, 5), seed=seed))
        return "filled"
    stop: tuple[str, ...] = ()
    if rng.random() < 0.6:
        likely = pipeline.generate("", max_tokens=8, seed=seed, temperature=1.0).result().text
        at = rng.randrange(len(likely) + 1)
        stop = (rng.choice((likely[at : at + 3], odd_text(rng)[:40], "a", "e ")),)
    options = {"max_tokens": rng.choice((1, 2, 8, 12)), "temperature": rng.choice((0.0, 1.0, 2.0))}
    slide = rng.random() < 0.9
    generation = pipeline.generate(text, seed=seed, stop=stop, slide=slide, **options)
    _stream(pipeline, stop, generation)
    return generation.result().finish_reason


def _odd_setting(rng: Random, item: Any) -> Any:
    if rng.random() < 0.04:
        return rng.choice((*ODD_NUMBERS, float("nan"), float("inf"), "x", "", [], True, "1"))
    if item.kind is int:
        return rng.choice((1, 2, 3, 4, 5, 8, 16, 50, 1000))
    return rng.choice((0.0, 0.01, 0.1, 0.5, 0.9, 0.999, 1.0, 1.5, 4.0, 50.0))


def _try_settings(rng: Random, folder: Path, pipelines: Mapping[str, Pipeline]) -> str:
    from dlm_edge.runtime.families.table import RULES, rules_of

    pipeline = pipelines[rng.choice(sorted(pipelines))]
    rules = rules_of(pipeline.manifest.family)
    rule = rng.choice(rules if rng.random() < 0.97 else tuple(RULES.values()))
    known = rule.options()
    settings: dict[str, Any] = {"rule": rule.name}
    for name in rng.sample(sorted(known), min(len(known), rng.randrange(5))):
        settings[name] = _odd_setting(rng, known[name])
    if rng.random() < 0.02:
        settings[rng.choice(("treshold", "max_new_tokens", "", "rule"))] = 1
    seed = rng.getrandbits(31) if rng.random() < 0.95 else rng.choice((1 << 64, -1))
    common = {"seed": seed, "provisional": rng.random() < 0.3, **settings}
    if rng.random() < 0.2 and pipeline.manifest.mask_token_id is not None:
        gaps = rng.choice((1, 2, 3)) if rng.random() < 0.9 else rng.choice((12, 0, -1, 9999))
        _stream(pipeline, (), pipeline.infill("a ___ b ___", gap_tokens=gaps, **common))
        return "filled"
    tokens = rng.choice((None, 1, 2, 3, 7, 30, 200)) if rng.random() < 0.97 else -rng.randrange(9)
    if rng.random() < 0.15:
        common.pop("provisional")
        count = rng.choice((0, 1, 2, 3))
        for result in pipeline.generate("ab", num_samples=count, max_tokens=tokens, **common):
            check_text(pipeline, result)
        return "samples"
    prompt = "a" * rng.choice((0, 1, 2, 5, 9, 40))
    generation = pipeline.generate(prompt, max_tokens=tokens, slide=rng.random() < 0.9, **common)
    _stream(pipeline, (), generation)
    if tokens is not None:
        assert len(generation.result().token_ids) <= tokens
    return generation.result().finish_reason


def _kills(*names: str) -> Campaign:
    return Campaign(
        prepare=lambda folder: kills.prepare(folder, names), try_case=kills.try_kill, seconds=900.0
    )


CAMPAIGNS: Mapping[str, Campaign] = {
    "bundles": Campaign(prepare=_bundles, try_case=_try_bundle),
    "gguf": Campaign(prepare=_gguf_files, try_case=_try_gguf),
    "safetensors": Campaign(
        prepare=lambda folder: [*_own_folders(folder), *_public_folders(folder)],
        try_case=_try_safetensors,
    ),
    "folders": Campaign(
        prepare=lambda folder: [*_own_folders(folder), *_public_folders(folder)],
        try_case=_try_folder,
    ),
    "templates": Campaign(prepare=_tokenizer, try_case=_try_template),
    "prompts": Campaign(prepare=open_pipelines, try_case=_try_prompt),
    "settings": Campaign(prepare=open_pipelines, try_case=_try_settings),
    "kills": _kills("unpacking", "plan", "canvases"),
    "kills-training": _kills("training"),
    "kills-export": _kills("export"),
}
"""By the name that `make damage` knows."""
