"""What requests for texts are answered with: OpenAI's objects, and our canvases and figures.

Every choice has `decoding` beside its text: graph runs, tokens per run and second, the time of each
stage, the rule with all its settings, and the seed that gives the same text again.
"""

from __future__ import annotations

import secrets
import time
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from ..asynchronous import AsyncText, Step
from ..frames import MASK_GLYPH, MASKED, CanvasView
from ..text_generation import TextRequest, TextResult
from .bodies import Asked

_REASONS = {"end": "stop", "stop": "stop", "filled": "stop", "length": "length"}


class Answer:
    """Makes the objects of one answer."""

    def __init__(self, asked: Asked, model: str) -> None:
        self._asked = asked
        kind = "chat.completion" if asked.chat else "text_completion"
        self._head: dict[str, Any] = {
            "id": ("chatcmpl-" if asked.chat else "cmpl-") + secrets.token_hex(12),
            "object": kind + (".chunk" if asked.chat and asked.stream else ""),
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, results: Sequence[TextResult], waited: Sequence[float]) -> dict[str, Any]:
        """Gives the whole answer.

        Args:
            results: Of each choice.
            waited: Seconds that each was in the queue.
        """
        choices = []
        for index, result in enumerate(results):
            text = self._asked.prefixes[index] + self._text(result, index)
            content = {"role": "assistant", "content": text, "refusal": None}
            choices.append(
                {
                    "index": index,
                    **({"message": content} if self._asked.chat else {"text": text}),
                    "logprobs": None,
                    "finish_reason": _REASONS.get(result.finish_reason, "length"),
                    "decoding": figures(result, waited[index]),
                }
            )
        return {**self._head, "choices": choices, "usage": self._usage(results)}

    def first(self, index: int) -> dict[str, Any] | None:
        """Gives what a choice's stream begins with: the role, or the prompt to be repeated."""
        if self._asked.chat:
            return self._chunk(index, {"role": "assistant", "content": ""})
        prefix = self._asked.prefixes[index]
        return self._chunk(index, prefix) if prefix else None

    def piece(self, index: int, text: str, canvas: dict[str, Any] | None = None) -> dict[str, Any]:
        """Gives a chunk: text that is certain, and the canvas behind it."""
        more: dict[str, Any] = {} if canvas is None else {"canvas": canvas}
        return self._chunk(index, {"content": text} if self._asked.chat else text, None, **more)

    def last(self, index: int, result: TextResult, waited: float) -> dict[str, Any]:
        """Gives a choice's last chunk; the text of gaps comes with it, whole."""
        text = self._text(result, index) if result.gaps is not None else ""
        content = ({"content": text} if text else {}) if self._asked.chat else text
        return self._chunk(
            index,
            content,
            _REASONS.get(result.finish_reason, "length"),
            decoding=figures(result, waited),
        )

    def usage(self, results: Sequence[TextResult]) -> dict[str, Any]:
        """Gives the chunk that tells a stream's usage."""
        return {**self._head, "choices": [], "usage": self._usage(results)}

    def _chunk(
        self, index: int, content: Any, reason: str | None = None, **more: Any
    ) -> dict[str, Any]:
        name = "delta" if self._asked.chat else "text"
        choice = {"index": index, name: content, "logprobs": None, "finish_reason": reason}
        return {**self._head, "choices": [{**choice, **more}]}

    def _text(self, result: TextResult, index: int) -> str:
        """Gives a text as the answer has it: of a gap before a suffix, the gap alone."""
        if self._asked.suffix is None:
            return result.text
        template = self._asked.texts[index].template
        assert result.gaps is not None
        assert template is not None
        spaced = template[0].pieces[0].endswith(" ")
        return result.gaps[0].removeprefix(" ") if spaced else result.gaps[0]

    def _usage(self, results: Sequence[TextResult]) -> dict[str, int]:
        # Samples of a prompt share it, as OpenAI counts.
        firsts = self._asked.texts[:: self._asked.num_samples]
        prompt = sum(num_given(text) for text in firsts)
        made = sum(len(result.token_ids) for result in results)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": made,
            "total_tokens": prompt + made,
            "nfe": sum(result.nfe for result in results),
        }


def num_given(asked: TextRequest) -> int:
    """Gives how many tokens a text was given: its prompt, or the fixed ones of a template."""
    if asked.template is None:
        return len(asked.request.prompt_ids)
    canvas = asked.template[1]
    return len(canvas.ids) - sum(gap.stop - gap.start for gap in canvas.gaps)


def figures(result: TextResult, waited: float) -> dict[str, Any]:
    """Gives what a text took, and what gives it again."""
    return {
        "nfe": result.nfe,
        "tokens": len(result.token_ids),
        "tokens_per_nfe": round(result.tokens_per_nfe, 4),
        "tokens_per_s": round(result.tokens_per_s, 2),
        "seconds": {"queue": round(waited, 6)}
        | {stage: round(value, 6) for stage, value in result.seconds.items()},
        "settings": dict(result.settings),
        "seed": result.seed,
        "sample_index": result.sample_index,
        "ended_by": result.finish_reason,
        "approximate": result.approximate,
    }


class Canvas:
    """A choice's canvas as a stream shows it: whole pieces, from the first that changed on."""

    def __init__(self, text: AsyncText) -> None:
        self._decode = text.pipeline.tokenizer.decode
        self._view = CanvasView(text.given_ids, text.pipeline.manifest.mask_token_id)
        self._num_given = len(text.given_ids)
        self._sent: list[tuple[str, int]] = []
        self._starts: list[int] = []
        """Positions at which the pieces that were sent begin, ascending."""

    def after(self, step: Step) -> dict[str, Any] | None:
        """Gives what a step changed; None: nothing."""
        for span in step.spans:
            self._view.apply(span)
        return self._changed(step.nfe)

    def end(self, result: TextResult) -> dict[str, Any] | None:
        """Gives what the end changed: behind the end of a text is nothing."""
        if result.gaps is None:
            self._view.cut(self._num_given + len(result.token_ids))
        return self._changed(result.nfe)

    def _changed(self, nfe: int) -> dict[str, Any] | None:
        runs = self._view.runs()
        before, now = self._sent, [(state, token) for state, ids in runs for token in ids]
        shorter = min(len(now), len(before))
        at = next((i for i in range(shorter) if now[i] != before[i]), shorter)
        if at == len(now) == len(before):
            return None
        if at < len(before):  # no piece is cut that was sent
            del self._starts[bisect_right(self._starts, at) :]
            at = self._starts.pop()
        self._sent = now
        pieces, begin = [], 0
        for state, ids in runs:
            first, begin = max(at, begin), begin + len(ids)
            if first < begin:
                ids = ids[first - begin :]
                self._starts.append(first)
                text = MASK_GLYPH * len(ids) if state == MASKED else self._text(first, ids)
                pieces.append({"state": state, "ids": ids, "text": text})
        revised = self._view.num_revised
        return {"nfe": nfe, "position": at, "num_revised": revised, "pieces": pieces}

    def _text(self, at: int, ids: list[int]) -> str:
        """Decodes a piece behind the token before it: some tokenizers drop a text's first space."""
        if not at:
            return self._decode(ids)
        before = self._sent[at - 1][1]
        head, whole = self._decode([before]), self._decode([before, *ids])
        return whole[len(head) :] if whole.startswith(head) else self._decode(ids)
