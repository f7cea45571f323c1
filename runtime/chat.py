"""A conversation with a model: its turns in one text, of which each answer computes only the new.

The text begins as the bundle's template says and grows by what is said and answered; answers stay
as the model wrote them, token by token, except for thoughts that the template drops from earlier
ones. What the KV cache holds of it is not computed again, so that a turn costs the same however
long the conversation is. Knows no family: one that keeps no cache from one request to the next
reads the whole conversation again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from .errors import BundleError, ConfigError
from .pipeline import Pipeline, TextGeneration
from .text.chat_template import Around, ChatTemplate, read_chat_template
from .text_generation import TextRequest

_Pieces = list[tuple[str, bool]]
"""Text, and whether it may hold special tokens."""


class Chat:
    """One conversation; say something and read the answer before you say the next thing."""

    def __init__(self, pipeline: Pipeline, *, system: str | None = None) -> None:
        """Begins a conversation.

        Args:
            system: System message before the first turn; None: the template's own, if it has one.

        Raises:
            ConfigError: The bundle has no chat template, or its template takes no system text.
            BundleError: The template is unsound.
        """
        template = _template(pipeline)
        self._pipeline, self._template, self._system = pipeline, template, system
        self._end_ids = _end_ids(pipeline, template)
        self._ids: tuple[int, ...] = ()
        self._pieces: _Pieces = []
        self._turn: tuple[tuple[int, ...], _Pieces] = (), []
        """The conversation before the last turn in ids, and that turn up to where it asks."""
        self._answer: TextGeneration | None = None
        self.restart()

    def restart(self) -> None:
        """Forgets what was said."""
        self._ids, self._answer = (), None
        self._pieces = _opening(self._template, self._system)

    @property
    def ids(self) -> tuple[int, ...]:
        """The conversation so far, the last answer included; what ends that is still to come."""
        if self._answer is None:
            return self._ids
        return (*self._ids, *self._answer.so_far().token_ids)

    def say(self, text: str, **options: Any) -> TextGeneration:
        """Says something; returns the answer, to be read as `Pipeline.generate`'s is.

        Args:
            text: What is said; special tokens in it are plain text.
            **options: As `Pipeline.generate`'s: max_tokens, seed, stop, slide, conditions, …

        Raises:
            ConfigError: As `Pipeline.generate`; or the conversation has become too long.
        """
        ids, pieces = self.ids, list(self._pieces)
        if self._answer is not None:
            answer = self._pipeline.tokenizer.decode(self._answer.so_far().token_ids)
            kept = self._template.kept(answer)
            if self._template.ask is not None:
                ids, pieces = self._turn[0], list(self._turn[1])
                pieces += [(self._template.assistant[0], True), (kept, False)]
            elif kept != answer:
                ids, pieces = self._ids, [(kept, False)]
            pieces.append((self._template.assistant[1], True))
        pieces += _message(self._template.user, text)
        turn = ids, list(pieces)
        pieces.append((self._template.asking, True))
        begin = time.perf_counter()
        ids = (*ids, *self._pipeline.tokenizer.encode_pieces(pieces))
        coming = self._pipeline.continue_ids(
            ids, begin=begin, end_ids=self._end_ids, reuse=True, **options
        )
        self._ids, self._pieces, self._turn, self._answer = ids, [], turn, coming
        return coming


def ask_answer(
    pipeline: Pipeline, messages: Sequence[tuple[str, str]], **options: Any
) -> TextRequest:
    """Checks a request for the next answer of a conversation, to be given to `Pipeline.start`.

    For callers that keep the conversation as text. What the KV cache holds of it, because the
    request before was of the same conversation, is not computed again.

    Args:
        pipeline: Of the bundle that answers.
        messages: (role, text) of what was said: `system` at most once and first, then `user` and
            `assistant`; the last is the user's. Special tokens in a text are plain text.
        **options: As `Pipeline.ask`'s.

    Raises:
        ConfigError: As `Pipeline.ask`; a message out of place; or no chat template.
    """
    template = _template(pipeline)
    system = messages[0][1] if messages and messages[0][0] == "system" else None
    turns = messages if system is None else messages[1:]
    if not turns or turns[-1][0] != "user":
        raise ConfigError("the last message must have the role user: it is what is answered")
    begin = time.perf_counter()
    pieces = _opening(template, system)
    for role, text in turns:
        if role == "user":
            pieces += _message(template.user, text)
        elif role == "assistant":
            pieces += _message(template.assistant, template.kept(text))
        else:
            raise ConfigError(
                f"a message has the role {role!r}; roles are system (first), user and assistant"
            )
    pieces.append((template.asking, True))
    ids = pipeline.tokenizer.encode_pieces(pieces)
    end_ids = _end_ids(pipeline, template)
    return pipeline.ask_ids(ids, begin=begin, end_ids=end_ids, reuse=True, **options)


def _template(pipeline: Pipeline) -> ChatTemplate:
    template = read_chat_template(pipeline.bundle)
    if template is None:
        raise ConfigError(
            "the bundle has no chat template, because its tokenizer came with none that can "
            "be cut into plain pieces; continue texts instead of chatting with it"
        )
    return template


def _opening(template: ChatTemplate, system: str | None) -> _Pieces:
    """Gives what a conversation begins with; `system` None: the template's own system text."""
    text = template.default_system if system is None else system
    if text is None:
        return [(template.begin, True)]
    if template.system is None:
        raise ConfigError("this model's chat template takes no system text; leave it out")
    return [(template.begin, True), *_message(template.system, text)]


def _message(around: Around, text: str) -> _Pieces:
    return [(around[0], True), (text, False), (around[1], True)]


def _end_ids(pipeline: Pipeline, template: ChatTemplate) -> tuple[int, ...]:
    found = {name: pipeline.tokenizer.token_id(name) for name in template.stop}
    missing = [name for name, token in found.items() if token is None]
    if missing:
        raise BundleError(
            f"an answer ends at {missing[0]!r}, which is no token of the bundle's tokenizer; "
            "export it again"
        )
    return tuple(token for token in found.values() if token is not None)
