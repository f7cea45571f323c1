"""What `dlm-eval --tasks` has a model do, and the figures of what came of it.

A task draws texts from a bundle, on whatever engine runs it, and measures them beside human text
cut to the same words. Equal seeds and data mean equal prompts and gaps, so that two models compare
in pairs. Knows no family.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError
from ..noise.philox import check_key
from ..pipeline import Pipeline, TextResult
from .figures import Measured
from .judge import Judge
from .overlap import has_synonyms, overlap_figures, self_bleu
from .text_quality import cut_words, text_figures

Progress = Callable[[int, int], None]
Figures = Mapping[str, Measured]
GAP_WORDS = (1, 4, 12)
"""Lengths of the gaps of `infill`."""
_GAP_TRIES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """What all tasks go by."""

    documents: Sequence[str]
    """Held-out text: prompts, gaps, and what people wrote."""
    num_texts: int
    """Texts drawn."""
    num_words: int
    """Every text is cut to so many words before it is measured; shorter ones are left out."""
    prompt_words: int
    """Of a document, for `continue`."""
    max_tokens: int | None
    """New tokens at most; None: the pipeline's default."""
    seed: int = 0
    """Of every draw, and of the places of gaps."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Over the bundle's decoding settings."""
    judge: Judge | None = None
    """Reads the texts."""
    known: Collection[str] | None = None
    """The training text's words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReport:
    """What a task found."""

    figures: Figures
    """Of the model's texts, and what they took."""
    human: Figures
    """Of what people wrote in the same places; empty where that is the reference."""
    texts: Sequence[Mapping[str, Any]]
    """Prompt and text of each, whole."""
    notes: Sequence[str] = ()
    """What a reader of the figures must know."""

    def to_json(self) -> dict[str, Any]:
        """Returns the report with the rows that pairs are compared by."""
        return {
            "figures": {name: one.to_json() for name, one in self.figures.items()},
            "human": {name: one.to_json() for name, one in self.human.items()},
            "texts": list(self.texts),
            "notes": list(self.notes),
        }


def generate(pipeline: Pipeline, options: TaskOptions, progress: Progress) -> TaskReport:
    """Has the model write texts from nothing."""
    human = [text for text in options.documents if len(text.split()) >= options.num_words]
    return _written(
        pipeline, [""] * options.num_texts, human[: options.num_texts], options, progress
    )


def continue_(pipeline: Pipeline, options: TaskOptions, progress: Progress) -> TaskReport:
    """Has the model continue the first words of documents; the words count that follow them."""
    long = options.prompt_words + options.num_words
    chosen = [text for text in options.documents if len(text.split()) >= long][: options.num_texts]
    if not chosen:
        raise DataError(
            f"no document of the data has {long} words, as many as --prompt-words and --words ask "
            "for; lower them"
        )
    prompts = [cut_words(text, options.prompt_words) for text in chosen]
    human = [text.strip()[len(prompt) :] for text, prompt in zip(chosen, prompts, strict=True)]
    return _written(pipeline, prompts, human, options, progress)


def _written(
    pipeline: Pipeline,
    prompts: Sequence[str],
    human: Sequence[str],
    options: TaskOptions,
    progress: Progress,
) -> TaskReport:
    _check_variety(pipeline, options, prompts)
    results = []
    for number, prompt in enumerate(prompts):
        results.append(
            pipeline.generate(
                prompt, max_tokens=options.max_tokens, seed=options.seed, sample_index=number,
                **options.settings,
            ).result()
        )  # fmt: skip
        progress(number + 1, len(prompts))
    texts = [_cut(result.text, options.num_words) for result in results]
    own = _quality(prompts, texts, options, f"of {options.num_words} words; lower --words")
    written = [_cut(text, options.num_words) for text in human]
    if not any(written):
        raise DataError(f"no document of the data has {options.num_words} words; lower --words")
    beside = _quality(prompts[: len(written)], written, options, "")
    short = sum(not text for text in texts)
    notes = [f"{short} of {len(texts)} texts were shorter and are left out"] if short else []
    if len(written) < len(texts):
        notes.append(f"the data has {len(written)} texts of that length")
    shown = [
        {"prompt": prompt, "text": result.text, "finish_reason": result.finish_reason}
        for prompt, result in zip(prompts, results, strict=True)
    ]
    return TaskReport(figures={**own, **speed_of(results)}, human=beside, texts=shown, notes=notes)


def _cut(text: str, num_words: int) -> str:
    """Cuts a text; empty if it is shorter."""
    return cut_words(text, num_words) if len(text.split()) >= num_words else ""


def _quality(
    prompts: Sequence[str], texts: Sequence[str], options: TaskOptions, wanted: str
) -> dict[str, Measured]:
    if not any(texts):
        raise DataError(f"the model wrote no text {wanted}")
    scores = None
    if options.judge is not None:
        # With its prompt: a continuation is judged as one.
        whole = [
            f"{prompt} {text}".strip() if text else ""
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        scores = options.judge.score(whole)
    found = text_figures(texts, scores, options.known)
    return {**found, "self_bleu": self_bleu(texts)}


def speed_of(results: Sequence[TextResult]) -> dict[str, Measured]:
    """Gives `tokens_per_s` (wall time, without making engines ready), `nfe` (graph runs of a
    text), `tokens_per_nfe` and `ms_per_nfe`."""
    tokens = np.array([len(result.token_ids) for result in results], np.float64)
    runs = np.array([result.nfe for result in results], np.float64)
    seconds = np.array([r.seconds["total"] - r.seconds["prepare"] for r in results], np.float64)
    return {
        "tokens_per_s": Measured(np.stack([tokens, seconds], axis=1)),
        "nfe": Measured(np.stack([runs, np.ones_like(runs)], axis=1)),
        "tokens_per_nfe": Measured(np.stack([tokens, runs], axis=1)),
        "ms_per_nfe": Measured(np.stack([1e3 * seconds, runs], axis=1)),
    }


def _check_variety(pipeline: Pipeline, options: TaskOptions, prompts: Sequence[str]) -> None:
    settings = pipeline.settings(**options.settings)
    selection = settings.selection
    chooses_first = selection is not None and selection.chooses_first
    alike = len(prompts) > 1 and len(set(prompts)) == 1
    if alike and settings.sampling.greedy and not chooses_first:
        raise ConfigError(
            f"rule {settings.name} at temperature 0 writes one and the same text every time; "
            "give --temperature above 0, or --tasks continue"
        )


def infill(pipeline: Pipeline, options: TaskOptions, progress: Progress) -> TaskReport:
    """Has the model fill gaps of held-out text, of `GAP_WORDS` words in turn.

    A model that writes from left to right sees the text before the gap only: the baseline.
    """
    one_sided = pipeline.model.family.exact
    gaps = list(_gaps(pipeline, options))
    if not gaps:
        raise DataError(
            "no document of the data has a gap that fits the model's canvas; give longer documents"
        )
    filled, shown, results = [], [], []
    for number, (left, gap, right) in enumerate(gaps):
        length = len(pipeline.tokenizer.encode(f" {gap}"))
        given = {"seed": options.seed, "sample_index": number, **options.settings}
        if one_sided:
            result = pipeline.generate(left, max_tokens=length, **given).result()
            text = result.text
        else:
            template = f"{_plain(left)} ___ {_plain(right)}"
            result = pipeline.infill(template, gap_tokens=length, **given).result()
            text = (result.gaps or ("",))[0]
        filled.append(text)
        results.append(result)
        shown.append({"left": left, "gap": gap, "right": right, "text": text})
        progress(number + 1, len(gaps))
    notes = ["the model sees the text before a gap only"] if one_sided else []
    notes.append("a gap has as many tokens as its reference")
    if not has_synonyms():
        notes.append("meteor knows words and stems, no synonyms: nltk finds no WordNet here")
    figures = overlap_figures(filled, [gap for _, gap, _ in gaps])
    return TaskReport(figures={**figures, **speed_of(results)}, human={}, texts=shown, notes=notes)


def _plain(text: str) -> str:
    """Writes runs of underscores so that a template takes them for text."""
    return text.replace("___", "\\___")


def _gaps(pipeline: Pipeline, options: TaskOptions) -> Iterable[tuple[str, str, str]]:
    """Yields text before a gap, the gap and text behind it, which a canvas holds together."""
    check_key(options.seed, 0)
    rng = np.random.default_rng(options.seed)
    model = pipeline.model
    blocks = model.family.blocks(model.manifest, model.specs)
    longest = model.family.windows(model.manifest, model.specs, None)[1]
    room = max(blocks, default=longest) - len(pipeline.manifest.framing.start_ids)

    def size(words: Sequence[str]) -> int:
        return len(pipeline.tokenizer.encode(" ".join(words)))

    number = 0
    for document in options.documents:
        words = document.split()
        # A template keeps its text byte for byte, which a tokenizer of few characters may not.
        while words and size(words) + 2 > room:
            words = words[: min(len(words) - 1, max(1, len(words) * room // (size(words) + 2)))]
        length = GAP_WORDS[number % len(GAP_WORDS)]
        if len(words) < length + 2:
            continue
        start = int(rng.integers(1, len(words) - length))
        parts = words[:start], words[start : start + length], words[start + length :]
        left, gap, right = map(" ".join, parts)
        kept = (pipeline.tokenizer.decode(pipeline.tokenizer.encode(p)) == p for p in (left, right))
        if not all(kept):
            continue
        yield left, gap, right
        number += 1
        if number == options.num_texts:
            return


def speed(
    pipeline: Pipeline, options: TaskOptions, steps: Sequence[int], progress: Progress
) -> dict[str, TaskReport]:
    """Has the model write texts in each number of steps; the curve of quality against speed."""
    found = {}
    for number, count in enumerate(steps):
        asked = {**options.settings, "steps": count}
        found[str(count)] = generate(
            pipeline,
            replace(options, settings=asked),
            lambda done, total, before=number: progress(before * total + done, len(steps) * total),
        )
    return found


TASKS: Mapping[str, Callable[[Pipeline, TaskOptions, Progress], TaskReport]] = {
    "generate": generate, "continue": continue_, "infill": infill,
}  # fmt: skip
"""Beside `likelihood` and `speed`."""
