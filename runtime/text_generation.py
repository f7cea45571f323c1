"""One text on its way out: spans with their text as they come, and the result whenever one asks.

Adds text to the loop of `generate.py`, which knows tokens only. Knows no family.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .families.base import Request, Span
from .generate import Generation
from .text.template import Template, TemplateCanvas
from .text.tokenizer import Tokenizer


class StopFilter:
    """The growing text of one generation, which its first stop string ends.

    What could become a stop string is held back, so that none is shown, not even in part.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        """Starts an empty text; `stop` strings are not empty."""
        self._stop = tuple(stop)
        self._sent = 0
        self.text = ""
        """All text up to the stop string; what is held back is at its end."""
        self.stopped = False
        """True once a stop string has appeared."""

    def push(self, text: str) -> str:
        """Takes the next piece; returns what is now certain (perhaps nothing)."""
        if self.stopped:
            return ""
        self.text += text
        # A stop string never begins in what was sent: every possible beginning was held back.
        found = [at for stop in self._stop if (at := self.text.find(stop, self._sent)) >= 0]
        if found:
            self.text = self.text[: min(found)]
            self.stopped = True
            return self.flush()
        return self._send(len(self.text) - self._num_held())

    def flush(self) -> str:
        """Returns what is still held back: the text has ended."""
        return self._send(len(self.text))

    def _send(self, end: int) -> str:
        new = self.text[self._sent : end]
        self._sent += len(new)
        return new

    def _num_held(self) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        sizes = (
            size
            for stop in self._stop
            for size in range(1, len(stop))
            if self.text.endswith(stop[:size], self._sent)
        )
        return max(sizes, default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSpan(Span):
    """A change of the canvas, with the text that became certain by it."""

    text: str = ""
    """New text, to be shown after all that came before it. Empty for provisional spans, while a
    template is filled, and as long as a character or a possible stop string is not complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextResult:
    """What was generated, and what it took."""

    text: str
    """The new text, without the prompt; for a template the whole text."""
    token_ids: tuple[int, ...]
    """The new tokens, without prompt and end token; for a template those of its gaps."""
    gaps: tuple[str, ...] | None
    """For a template: the text of each gap."""
    finish_reason: str
    """`end` (the model ended it), `stop` (a stop string), `length`, `filled` (a template) or
    `interrupted`."""
    approximate: bool
    """True if the text outgrew the largest context, so that a part of it was no longer seen."""
    nfe: int
    """Graph runs: prefill, denoising and commits."""
    tokens_per_nfe: float
    seconds: Mapping[str, float]
    """Wall time by stage: `prepare` (making engines ready), `engine` (graph runs), `update`
    (sampling and cache), `text` (tokenizer), `host` (the rest); `total` is their sum."""
    tokens_per_s: float
    """New tokens per second of `total` without `prepare`."""
    engine: str
    precision: str
    rule: str
    seed: int
    sample_index: int
    settings: Mapping[str, Any]
    """Every decoding setting in effect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRequest:
    """A text to generate, checked: what the model is asked for, and what becomes of its text."""

    request: Request
    stop: tuple[str, ...] = ()
    """The first of these strings to appear ends the text."""
    template: tuple[Template, TemplateCanvas] | None = None
    """Given for a template, whose gaps are filled."""
    reuse: bool = False
    """Whether what the KV cache holds of the prompt is not computed again."""
    text_seconds: float = 0.0
    """Wall time of turning text into ids."""


def request_labels(request: Request, engine: str, precision: str) -> dict[str, Any]:
    """Returns the fields of a result that say where it comes from."""
    settings = request.settings
    assert settings is not None
    return {
        "engine": engine,
        "precision": precision,
        "rule": settings.name,
        "seed": request.seed,
        "sample_index": request.sample_index,
        "settings": settings.to_json(),
    }


class TextGeneration:
    """A text being generated: iterate for its spans, or take its `result()` at once.

    May be left at any time (`break`, Ctrl-C): `so_far()` then gives what was committed. A scheduler
    takes `step` after step instead of iterating.
    """

    def __init__(
        self,
        loop: Generation,
        asked: TextRequest,
        tokenizer: Tokenizer,
        labels: Mapping[str, Any],
    ) -> None:
        """Wraps a started request."""
        self._loop, self._tokenizer, self._labels = loop, tokenizer, labels
        self._template, self._text_seconds = asked.template, asked.text_seconds
        self.tokenise_seconds = asked.text_seconds
        """The part of `seconds["text"]` that was spent before the first run."""
        prompt_ids = asked.request.prompt_ids
        self.given_ids = asked.template[1].ids if asked.template else prompt_ids
        """The canvas as it starts: the prompt, or a template with mask ids in its gaps."""
        self._filter = StopFilter(asked.stop)
        self._stream = tokenizer.stream()
        self._stream.push(prompt_ids)
        self._spans = self._run()
        self._end = 0
        self.done = False
        """True when the last span has been given."""

    def __iter__(self) -> Iterator[TextSpan]:
        """Decodes on; every span comes once, however many loops read them."""
        return self._spans

    @property
    def fills(self) -> bool:
        """True for a template's gaps; False for a text that goes on behind a prompt."""
        return self._template is not None

    @property
    def nfe(self) -> int:
        """Graph runs so far."""
        return self._loop.nfe

    @property
    def num_cached(self) -> int:
        """Tokens of the prompt that were in the KV cache already and were not computed again."""
        return self._loop.num_cached

    def result(self) -> TextResult:
        """Decodes to the end if that has not happened yet, and gives the whole result."""
        for _ in self._spans:
            pass
        return self.so_far()

    def so_far(self) -> TextResult:
        """Tells what is committed by now; `finish_reason` is `interrupted` before the end."""
        inner = self._loop.result
        begin = time.perf_counter()
        if self._template is None:
            text, gaps = self._filter.text, None
            token_ids = self._cut(inner.new_token_ids)
        else:
            text, gaps, token_ids = self._fill(self._template, inner.token_ids)
        text_seconds = self._text_seconds + time.perf_counter() - begin
        seconds = {name: value for name, value in inner.seconds.items() if name != "total"}
        seconds |= {"text": text_seconds, "total": inner.seconds["total"] + text_seconds}
        busy = seconds["total"] - seconds["prepare"]
        return TextResult(
            text=text,
            token_ids=token_ids,
            gaps=gaps,
            finish_reason=self._finish_reason(inner.finish_reason),
            approximate=inner.approximate,
            nfe=inner.nfe,
            tokens_per_nfe=len(token_ids) / inner.nfe if inner.nfe else 0.0,
            seconds=seconds,
            tokens_per_s=len(token_ids) / busy if busy > 0 else 0.0,
            **self._labels,
        )

    def step(self) -> list[TextSpan]:
        """Makes one graph run, or takes what one for another text has changed; returns the spans.

        None may have changed. Not to be called when `done`.
        """
        spans: list[TextSpan] = []
        for span in () if self._loop.done else self._loop.step():
            spans.append(self._with_text(span))
            self._end = span.position + len(span.token_ids)
            if self._filter.stopped:
                break
        if self._filter.stopped or self._loop.done:
            self.done = True
            self.leave()
            begin = time.perf_counter()
            rest = self._filter.push(self._stream.flush()) + self._filter.flush()
            self._text_seconds += time.perf_counter() - begin
            if rest and self._template is None:
                end = TextSpan(position=self._end, token_ids=(), committed=True, text=rest)
                spans.append(end)
        return spans

    def leave(self) -> None:
        """Says that no more steps are wanted, so that texts sharing its runs go on without it."""
        self._loop.leave()

    def _run(self) -> Iterator[TextSpan]:
        try:
            while not self.done:
                yield from self.step()
        finally:
            self.leave()

    def _with_text(self, span: Span) -> TextSpan:
        text = ""
        if span.committed and self._template is None:
            begin = time.perf_counter()
            text = self._filter.push(self._stream.push(span.token_ids))
            self._text_seconds += time.perf_counter() - begin
        return TextSpan(
            position=span.position,
            token_ids=span.token_ids,
            committed=span.committed,
            fixed=span.fixed,
            text=text,
        )

    def _cut(self, token_ids: tuple[int, ...]) -> tuple[int, ...]:
        """Drops the tokens behind a stop string; one that it begins in stays."""
        if not self._filter.stopped:
            return token_ids
        lengths = range(len(token_ids) + 1)
        size = bisect_left(
            lengths,
            len(self._filter.text),
            key=lambda count: len(self._tokenizer.decode(token_ids[:count])),
        )
        return token_ids[:size]

    def _fill(
        self, template: tuple[Template, TemplateCanvas], token_ids: tuple[int, ...]
    ) -> tuple[str, tuple[str, ...], tuple[int, ...]]:
        """Returns text, gaps and the gaps' tokens; what is not committed yet is left out."""
        form, canvas = template
        filled = [token_ids[gap] for gap in canvas.gaps]
        gaps = tuple(map(self._tokenizer.decode, filled))
        return form.assemble(gaps), gaps, tuple(token for ids in filled for token in ids)

    def _finish_reason(self, reason: str) -> str:
        if self._filter.stopped:
            return "stop"
        if not self.done:
            return "interrupted"
        return reason if self._template is None or reason == "interrupted" else "filled"
