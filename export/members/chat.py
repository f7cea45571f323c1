"""A tokenizer's chat template, turned into plain pieces that a device can join without a language.

A Hugging Face checkpoint holds the template as a Jinja program, in `tokenizer_config.json` or in a
file of its own, `chat_template.jinja` or `chat_template.json`. On the desktop it renders a few
conversations in a sandbox; the text around the messages gives the pieces, and joining the pieces
must give every rendered conversation back, letter by letter. Thoughts that a template drops from
earlier answers are dropped by the device, too. A template that is not made of pieces (one that
writes the date, say) is refused in one line, and the bundle goes without chat.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...runtime.errors import ConfigError, brief
from ...runtime.files import parse_json
from ...runtime.text.chat_template import CHAT_NAME, ChatTemplate

CONFIG_NAME, TEMPLATE_NAME = "tokenizer_config.json", "chat_template.jinja"
PROCESSOR_NAME = "chat_template.json"
"""Where some checkpoints have the template, under the key of the same name."""
MAX_TEMPLATE = 1 << 20
"""Characters; real ones have a few thousand."""
THOUGHTS_END = "</think>"
"""What ends the thoughts in the answers of public models."""
SYSTEM, ASKED, SAID = "SYSTEM-7f3a", "ASKED-91c2", "SAID-e05b"
"""Texts that no template contains, to find the text around them."""
Messages = Sequence[Mapping[str, str]]


class _Renderer:
    """Renders a template as transformers does."""

    def __init__(self, config: Mapping[str, Any], template: str, thinking: bool | None) -> None:
        # Comes with torch, but only export needs it.
        from jinja2 import TemplateError, nodes
        from jinja2.ext import Extension
        from jinja2.parser import Parser
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise TemplateError(message)

        class Generation(Extension):
            """`{% generation %}` marks what training counts; it writes only what it encloses."""

            tags = {"generation"}  # noqa: RUF012

            def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
                """Gives the nodes that the tag encloses."""
                next(parser.stream)
                return parser.parse_statements(("name:endgeneration",), drop_needle=True)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", Generation],
        )
        environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
        environment.globals["raise_exception"] = refuse
        self._values: dict[str, Any] = {
            name: token for name, value in config.items() if (token := _token(value)) is not None
        }
        if thinking is not None:
            self._values["enable_thinking"] = thinking
        try:
            self._template = environment.from_string(template)
        except Exception as error:
            raise ConfigError(f"it is no template that can be read ({_line(error)})") from error

    def render(self, messages: Messages, *, prompt: bool) -> str:
        """Renders a conversation; with `prompt`, up to where the model's answer begins.

        Raises:
            ConfigError: The template refuses it, or asks for more than messages.
        """
        try:
            return self._template.render(
                messages=[dict(item) for item in messages],
                add_generation_prompt=prompt,
                **self._values,
            )
        except Exception as error:  # a program of someone else's raises what it likes
            raise ConfigError(f"it cannot render a conversation ({_line(error)})") from error


def _token(value: Any) -> str | None:
    """A special token of the config, which may be an object with its text as `content`."""
    text = value.get("content") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) else None


def _line(error: Exception) -> str:
    return brief(error, 100)


def read_chat(
    companions: Mapping[str, str], tokenizer_json: str, thinking: bool | None = None
) -> tuple[ChatTemplate | None, str]:
    """Finds a checkpoint's chat template.

    Args:
        companions: Contents of the files that came with the tokenizer, by name.
        tokenizer_json: Names the special tokens.
        thinking: What a template that can ask for an answer with or without thoughts is given;
            None: nothing.

    Returns:
        The pieces, or None and why there are none, in one line (empty if nobody expects any: the
        checkpoint has no template).
    """
    found: dict[str, dict[str, Any]] = {}
    for name in (CONFIG_NAME, PROCESSOR_NAME):
        try:
            found[name] = parse_json(companions.get(name, "{}"))
        except ValueError as error:
            return None, f"{name} is not readable as JSON ({_line(error)}): no chat"
        if not isinstance(found[name], dict):
            return None, f"{name} is no JSON object: no chat"
    config = found[CONFIG_NAME]
    if "chat_template" in found[PROCESSOR_NAME]:
        config["chat_template"] = found[PROCESSOR_NAME]["chat_template"]
    if TEMPLATE_NAME in companions:  # newer than the key, and goes before it
        config["chat_template"] = companions[TEMPLATE_NAME]
    if not config.get("chat_template"):
        return None, ""
    try:
        return pieces_of(config, _special_names(tokenizer_json), thinking), ""
    except ConfigError as error:
        return None, f"the bundle goes without chat: of the checkpoint's chat template, {error}"


def _special_names(tokenizer_json: str) -> tuple[str, ...]:
    """Names of the special tokens, longest first."""
    added = parse_json(tokenizer_json).get("added_tokens") or []
    names = (item["content"] for item in added if item.get("special"))
    return tuple(sorted(names, key=len, reverse=True))


def pieces_of(
    config: Mapping[str, Any], special_names: Sequence[str], thinking: bool | None = None
) -> ChatTemplate:
    """Splits a template into pieces; raises ConfigError, in words that follow "of the template"."""
    template = config["chat_template"]
    if isinstance(template, list):  # several by name, of which one is for conversations
        listed = [item for item in template if isinstance(item, Mapping)]
        named = {item.get("name"): item.get("template") for item in listed}
        template = named.get("default")
    if not isinstance(template, str) or len(template) > MAX_TEMPLATE:
        raise ConfigError("there is none for plain conversations")
    renderer = _Renderer(config, template, thinking)
    found = _take_apart(renderer, config, special_names)
    try:
        _verify(renderer, found)
    except ConfigError:
        found = replace(found, thoughts_end=THOUGHTS_END)
        _verify(renderer, found)
    return found


def _take_apart(
    renderer: _Renderer, config: Mapping[str, Any], special_names: Sequence[str]
) -> ChatTemplate:
    """Reads the pieces off conversations of one and two turns."""
    asked, said = {"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}
    plain = renderer.render([asked, said, asked], prompt=False)
    # The text between a question and its answer is split by how a conversation ends.
    before, between, again, user_after = _around(plain, (ASKED, SAID, ASKED))
    if not between.startswith(user_after):
        raise ConfigError("a user's turn ends differently in the middle")
    assistant_before = between[len(user_after) :]
    closed = renderer.render([asked, said], prompt=False)
    assistant_after = _around(closed, (ASKED, SAID))[2]
    if not again.startswith(assistant_after):
        raise ConfigError("an answer ends differently in the middle")
    user_before = again[len(assistant_after) :]
    if not before.endswith(user_before):
        raise ConfigError("the first turn begins differently")
    opening = before[: len(before) - len(user_before)]
    _, asking = _around(renderer.render([asked], prompt=True), (ASKED,))
    if not asking.startswith(user_after):
        raise ConfigError("a user's turn ends differently at the end")
    ask = asking[len(user_after) :]
    begin, system, default = _system(renderer, opening, user_before)
    stop = _stops(config, assistant_after, special_names)
    return ChatTemplate(
        begin=begin,
        system=system,
        user=(user_before, user_after),
        assistant=(assistant_before, assistant_after),
        default_system=default,
        stop=stop,
        ask=None if ask == assistant_before else ask,
    )


def _around(text: str, marks: Sequence[str]) -> list[str]:
    """Splits a text at marks in their order; ConfigError unless each occurs once."""
    parts = []
    for mark in marks:
        part, found, text = text.partition(mark)
        if not found:
            raise ConfigError("a message's text does not come out as it went in")
        parts.append(part)
    if any(mark in text for mark in marks):
        raise ConfigError("a message's text comes out twice")
    return [*parts, text]


def _system(
    renderer: _Renderer, opening: str, user_before: str
) -> tuple[str, tuple[str, str] | None, str | None]:
    """Finds the text around a system message, and the one that is there unless given."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": ASKED}]
    try:
        text = renderer.render(messages, prompt=False)
        before, after, _ = _around(text, (SYSTEM, ASKED))
    except ConfigError:
        return opening, None, None  # verified below: it is used without system messages only
    if not after.endswith(user_before):
        raise ConfigError("the turn behind a system message begins differently")
    after = after[: len(after) - len(user_before)]
    if before.startswith(opening):
        return opening, (before[len(opening) :], after), None
    if opening.startswith(before) and opening.endswith(after):
        return "", (before, after), opening[len(before) : len(opening) - len(after)]
    raise ConfigError("a conversation without a system message begins differently")


def _stops(
    config: Mapping[str, Any], assistant_after: str, special_names: Sequence[str]
) -> tuple[str, ...]:
    """Names the tokens that end an answer: what the template writes there, and the tokenizer's."""
    written = next((name for name in special_names if assistant_after.startswith(name)), None)
    if written is None:
        raise ConfigError("no special token ends an answer")
    end = _token(config.get("eos_token"))
    return tuple(dict.fromkeys([written, *([end] if end in special_names and end else [])]))


def _verify(renderer: _Renderer, found: ChatTemplate) -> None:
    """Holds the pieces to conversations of other lengths and texts; ConfigError if one differs.

    All of them ask for an answer: how the last answer is written is never needed.
    """
    first = {"role": "user", "content": "Hello there!"}
    answer = {"role": "assistant", "content": "Hi. What shall we do?\n\n1. Sing\n2. Sail"}
    other = {"role": "user", "content": "Sail {{ away }} <far>, 'please' & \"now\" \u00e9\u4e16"}
    system = {"role": "system", "content": "Answer briefly.\nNo jokes."}
    thought = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nLet us sing."}
    conversations = [[first], [first, answer, other], [first, answer, other, thought, first]]
    if found.system is not None:
        conversations += [[system, *item] for item in conversations]
    for messages in conversations:
        if renderer.render(messages, prompt=True) != join(found, messages):
            raise ConfigError(
                f"a conversation of {len(messages)} messages is not the sum of its pieces"
            )


def join(found: ChatTemplate, messages: Messages) -> str:
    """Writes a conversation up to where an answer begins, as the device does, in text."""
    parts = [found.begin]
    listed = list(messages)
    if found.system is not None:
        if listed[0]["role"] == "system":
            parts += [found.system[0], listed.pop(0)["content"], found.system[1]]
        elif found.default_system is not None:
            parts += [found.system[0], found.default_system, found.system[1]]
    for message in listed:
        if message["role"] == "user":
            parts += [found.user[0], message["content"], found.user[1]]
        else:
            parts += [found.assistant[0], found.kept(message["content"]), found.assistant[1]]
    return "".join([*parts, found.asking])


def chat_member(found: ChatTemplate | None) -> dict[str, bytes]:
    """The bundle's member that holds the pieces, where there are any."""
    if found is None:
        return {}
    return {CHAT_NAME: (json.dumps(found.to_json(), indent=1) + "\n").encode()}
