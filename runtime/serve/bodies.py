"""Bodies of `/v1/completions` and `/v1/chat/completions`, checked and made into requests.

OpenAI's fields, the decoding options of the bundle's rules by their own names, and what is ours:
`provisional`, `template`, `gap_tokens`, `slide`, `num_steps`. A field that would change the text
and is not here is refused, never passed over.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..chat import ask_answer
from ..families.table import rules_of, with_rule
from ..pipeline import Pipeline
from ..text.template import Template
from ..text_generation import TextRequest
from .http import HttpError

MAX_TEXTS = 16
"""Texts of one request at most."""
MAX_TOKENS = 1 << 15
"""New tokens of one text at most."""
MAX_CHARACTERS = 1 << 17
"""Of all texts of a request: while a text is tokenised, nothing else is done."""
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
"""Of a stop string: every step looks for all its beginnings."""
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
"""Fields that do not change the text."""
_LOGPROBS = (
    "a diffusion model commits a token with sight of a part of the text only, so its probability "
    "then is no factor of the text's; dlm-eval bounds a text's likelihood"
)
NEUTRAL: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "presence_penalty": ((0,), "use repetition_penalty"),
    "frequency_penalty": ((0,), "use repetition_penalty"),
    "logit_bias": (({},), "leave it out"),
    "best_of": ((1,), "use n"),
    "logprobs": ((False,), _LOGPROBS),
    "top_logprobs": ((0,), _LOGPROBS),
    "response_format": (({"type": "text"},), "this server writes plain text only"),
    "tools": (([],), "this server calls no tools"),
    "tool_choice": (("none", "auto"), "this server calls no tools"),
    "functions": (([],), "this server calls no tools"),
    "modalities": ((["text"],), "this server writes text only"),
}
"""Fields of OpenAI's that are accepted at these values alone, and what to do instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request for texts, checked."""

    texts: tuple[TextRequest, ...]
    """One for each choice of the answer."""
    num_samples: int
    """Choices of each prompt, which follow each other."""
    prefixes: tuple[str, ...]
    """Per choice: what the answer repeats in front of the text."""
    suffix: str | None
    """Given where gaps between a prompt and a suffix are filled: an answer is the gap alone."""
    chat: bool
    stream: bool
    include_usage: bool
    """Whether a stream ends with the request's usage."""
    provisional: bool
    """Whether a stream shows the canvas after every step."""


def read_asked(
    body: Mapping[str, Any], pipeline: Pipeline, *, chat: bool, seed: int | None = None
) -> Asked:
    """Checks a body; `seed` is that of a request that gives none, None: one is drawn.

    Raises:
        HttpError: A field that is missing, unknown, of the wrong type, or without meaning here.
        ConfigError: A value that the model or the rule does not take.
    """
    fields = _Fields(body)
    stream = fields.take("stream", bool, False)
    stream_options = fields.take("stream_options", dict, {})
    count = fields.take("n", int, 1)
    if not 1 <= count <= MAX_TEXTS:
        raise _refused("n", f"must be from 1 to {MAX_TEXTS}, found {count}")
    options: dict[str, Any] = {
        "seed": fields.take("seed", int, seed),
        "provisional": fields.take("provisional", bool, False),
    }
    if options["seed"] is None:
        options["seed"] = secrets.randbits(32)
    options |= _settings(fields, pipeline)
    max_tokens = fields.take("max_tokens", int, None)
    if chat:
        max_tokens = fields.take("max_completion_tokens", int, max_tokens)
    if max_tokens is not None and not 1 <= max_tokens <= MAX_TOKENS:
        raise _refused("max_tokens", f"must be from 1 to {MAX_TOKENS}, found {max_tokens}")
    stop = fields.texts("stop", MAX_STOPS)
    if max(map(len, stop), default=0) > MAX_STOP_CHARACTERS:
        raise _refused("stop", f"must be at most {MAX_STOP_CHARACTERS} characters long")
    gaps: dict[str, Any] = {}
    gap_tokens = fields.take("gap_tokens", (int, list), None)
    if gap_tokens is not None:
        gaps["gap_tokens"] = _gap_tokens(gap_tokens)
    suffix = template = None
    echo = False
    if chat:
        sources: list[Any] = [_messages(fields.take("messages", list, None))]
    else:
        echo = fields.take("echo", bool, False)
        template = fields.take("template", str, None)
        suffix = fields.take("suffix", str, None) or None
        sources = fields.texts("prompt", MAX_TEXTS) or [""]
        if template is not None:
            if suffix is not None or body.get("prompt"):
                raise _refused("template", "is the whole text: leave prompt and suffix out")
            sources = [template]
        elif suffix is not None:
            sources = [Template(pieces=(source, suffix)) for source in sources]
    slide = fields.take("slide", bool, False)
    fills = suffix is not None or template is not None
    length = sum(map(_length, sources))
    if length > MAX_CHARACTERS:
        name = "messages" if chat else "template" if template is not None else "prompt"
        raise _refused(name, f"must have at most {MAX_CHARACTERS} characters, found {length}")
    if len(sources) * count > MAX_TEXTS:
        raise _refused("n", f"times prompts must be at most {MAX_TEXTS}")
    fields.finish(pipeline)

    def ask(source: Any, index: int) -> TextRequest:
        common = {**options, "sample_index": index}
        if chat:
            return ask_answer(
                pipeline, source, max_tokens=max_tokens, stop=stop, slide=slide, **common
            )
        if not fills:
            return pipeline.ask(source, max_tokens=max_tokens, stop=stop, slide=slide, **common)
        if stop or slide:
            raise _refused("stop" if stop else "slide", "has no meaning where gaps are filled")
        if max_tokens is not None:
            gaps.setdefault("gap_tokens", max_tokens)
        return pipeline.ask_infill(source, **gaps, **common)

    if gaps and not fills:
        raise _refused("gap_tokens", "has no meaning without suffix or template")
    return Asked(
        texts=tuple(ask(source, index) for source in sources for index in range(count)),
        num_samples=count,
        prefixes=tuple(_prompt_of(s) if echo else "" for s in sources for _ in range(count)),
        suffix=suffix,
        chat=chat,
        stream=stream,
        include_usage=bool(stream_options.get("include_usage")),
        provisional=options["provisional"],
    )


class _Fields:
    """The fields of a body, each to be taken once."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self.left = {name: value for name, value in body.items() if value is not None}
        self.left.pop("model", None)

    def take(self, name: str, kind: type | tuple[type, ...], default: Any) -> Any:
        """Takes a field of a type; a number that must be whole may be written 8.0."""
        if name not in self.left:
            return default
        value = self.left.pop(name)
        if kind is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            raise _refused(name, f"must be {' or '.join(_WORDS[k] for k in kinds)}")
        return value

    def texts(self, name: str, most: int) -> list[str]:
        """Takes a text or a list of texts."""
        value = self.take(name, (str, list), [])
        value = [value] if isinstance(value, str) else value
        if not all(isinstance(item, str) for item in value):
            raise _refused(name, "must be a string or an array of strings (no token ids)")
        if len(value) > most:
            raise _refused(name, f"must be at most {most} texts, found {len(value)}")
        return value

    def finish(self, pipeline: Pipeline) -> None:
        """Refuses whatever is left."""
        for name, value in self.left.items():
            if name in IGNORED:
                continue
            if name not in NEUTRAL:
                raise _refused(
                    name,
                    "is unknown here; options of this model's rules are "
                    + ", ".join(sorted(_option_names(pipeline))),
                )
            values, instead = NEUTRAL[name]
            if value not in values:
                raise _refused(name, f"is not supported: {instead}")


_WORDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a string",
    list: "an array", dict: "an object",
}  # fmt: skip


def _option_names(pipeline: Pipeline) -> set[str]:
    rules = rules_of(pipeline.manifest.family)
    return {"rule", "num_steps", *(name for rule in rules for name in rule.options())}


def _settings(fields: _Fields, pipeline: Pipeline) -> dict[str, Any]:
    """Takes the decoding options; top_p 1, which clients send as a default, is none."""
    settings = {name: fields.left.pop(name) for name in _option_names(pipeline) & set(fields.left)}
    if settings.get("top_p") == 1:
        del settings["top_p"]
    if "num_steps" in settings:
        settings.setdefault("steps", settings.pop("num_steps"))
    return with_rule(settings, pipeline.settings(), pipeline.manifest.family)


def _length(source: str | Template | list[tuple[str, str]]) -> int:
    if isinstance(source, str):
        return len(source)
    texts = source.pieces if isinstance(source, Template) else [text for _, text in source]
    return sum(map(len, texts))


def _prompt_of(source: str | Template) -> str:
    return source if isinstance(source, str) else source.pieces[0]


def _gap_tokens(value: int | list[Any]) -> list[int]:
    listed = [value] if isinstance(value, int) else value
    if not all(isinstance(item, int) and 1 <= item <= MAX_TOKENS for item in listed):
        raise _refused("gap_tokens", f"must be whole numbers from 1 to {MAX_TOKENS}")
    return listed


def _messages(value: Sequence[Any] | None) -> list[tuple[str, str]]:
    """Reads a conversation: contents are strings or arrays of text parts."""
    if not value:
        raise _refused("messages", "must be an array with at least one message")
    found = []
    for message in value:
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str):
            raise _refused("messages", "must hold objects with role and content")
        content = message.get("content")
        if isinstance(content, list):
            parts = [p.get("text") if isinstance(p, dict) else None for p in content]
            texts = [part for part in parts if isinstance(part, str)]
            content = "".join(texts) if len(texts) == len(parts) else None
        if not isinstance(content, str):
            raise _refused("messages", "content must be a string, or an array of text parts")
        found.append(("system" if role == "developer" else role[:64], content))
    return found


def _refused(name: str, what: str) -> HttpError:
    name = name[:64]
    return HttpError(400, f"{name} {what}", param=name)
