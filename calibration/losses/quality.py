"""What a bundle's precision costs, in every figure of the report: measured, with its interval.

Each variant (fp32, fp16, int8, and int8 calibrated otherwise) is measured on the same held-out
text under the same masks, on the same canvases, and on the same decodes. The figures are plain
data: `report_page.py` draws them, `report.json` keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...runtime.families.base import LoadedModel, Request
from ...runtime.measure.judge import Judge
from ...runtime.measure.text_quality import text_figures
from ...runtime.text.tokenizer import Tokenizer
from ..canvases.modes import reads_as_it_writes
from ..graphs import Models, num_bytes
from .agreement import Reference, Trajectory, decode_trajectory, trajectory_agreement
from .loss import LossText, Ratio, worst

SINGLE_TOKENS = 24
"""New tokens of a decode that takes a run for each."""
Progress = Callable[[int, int], None]
Totals = Mapping[int | None, np.ndarray]
"""By block size: (samples, windows) nats of the bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantFigures:
    """What was measured of one variant."""

    name: str
    title: str
    """For people."""
    num_bytes: int
    """Of its graphs and weights."""
    perplexity: dict[str, float]
    """The bound's at the block size that decoding takes unless asked, with its interval over the
    masks."""
    ratio: Ratio
    """Perplexity over fp32's, in pairs, at that block size."""
    by_block: dict[str, dict[str, Any]]
    """Perplexity and ratio at every block size that was measured."""
    agreement: dict[str, Any]
    """With fp32 on equal canvases."""
    trajectory: dict[str, Any]
    """With fp32's decodes of equal prompts and seeds."""
    samples: dict[str, Any]
    """Of the decoded texts: a judge's bits per character (None without one), entropy, …"""

    @property
    def worst(self) -> Ratio:
        """The ratio that a budget must hold for, of all block sizes measured."""
        return worst(item["ratio"] for item in self.by_block.values())


class Examiner:
    """Measures variants against the floating-point model, which is measured first."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        texts: Sequence[LossText],
        canvases: Sequence[Any],
        prompts: Sequence[np.ndarray],
        tokenizer: Tokenizer,
        judge: Judge | None,
        seed: int,
        progress: Progress = lambda done, total: None,
    ) -> None:
        """Runs the reference.

        Args:
            texts: To measure the bound on: one per block size, the one decoded by first.
            canvases: Held-out ones, for agreement.
            prompts: (L,) int32 each: continued for trajectories and samples.
            judge: Of samples; None: entropy only.
        """
        self._judge = judge
        self._texts = {text.block: text for text in texts}
        self._prompts, self._tokenizer, self._seed = prompts, tokenizer, seed
        self.totals: Totals = self.measure(model, progress=progress)
        """Of the reference."""
        self._reference = Reference(model, canvases)
        self._decodes = self._decode(model)

    @property
    def main(self) -> int | None:
        """The block size that decoding takes unless asked."""
        return next(iter(self._texts))

    def measure(
        self,
        model: LoadedModel,
        *,
        blocks: Sequence[int | None] | None = None,
        progress: Progress = lambda done, total: None,
    ) -> Totals:
        """Measures a variant's bound at some block sizes (None: all of them)."""
        texts = [self._texts[block] for block in (self._texts if blocks is None else blocks)]
        sizes = [len(text.windows) * text.num_samples for text in texts]
        found = {}
        for number, text in enumerate(texts):
            before = sum(sizes[:number])
            found[text.block] = text.totals(
                model,
                lambda done, _, before=before: progress(before + done, sum(sizes)),
            )
        return found

    def ratios(self, totals: Totals, other: Totals | None = None) -> dict[int | None, Ratio]:
        """Compares what `measure` gave with the reference, or with another variant's."""
        against = self.totals if other is None else other
        return {
            block: self._texts[block].ratio(found, against[block])
            for block, found in totals.items()
            if block in against
        }

    def worst(self, totals: Totals) -> Ratio:
        """Returns the ratio that a budget must hold for, of all block sizes measured."""
        return worst(self.ratios(totals).values())

    def by_block(self, totals: Totals) -> dict[str, dict[str, Any]]:
        """Returns perplexity and ratio per block size, for `VariantFigures`."""
        return {
            str(block or "all"): {
                "perplexity": self._texts[block].perplexity(totals[block]),
                "ratio": ratio,
            }
            for block, ratio in self.ratios(totals).items()
        }

    def examine(
        self,
        name: str,
        title: str,
        models: Models,
        model: LoadedModel,
        totals: Totals,
    ) -> VariantFigures:
        """Measures the rest of one variant, whose `totals` are known, `main` among them."""
        decodes = self._decode(model)
        return VariantFigures(
            name=name,
            title=title,
            num_bytes=sum(map(num_bytes, models.values())),
            perplexity=self._texts[self.main].perplexity(totals[self.main]),
            ratio=self.ratios(totals)[self.main],
            by_block=self.by_block(totals),
            agreement=self._reference.agreement(model).to_json(),
            trajectory=trajectory_agreement(decodes, self._decodes),
            samples=self._samples(decodes),
        )

    def _decode(self, model: LoadedModel) -> list[Trajectory]:
        settings = model.settings({})
        most = model.positions(settings)
        if reads_as_it_writes(model):
            most = min(most, SINGLE_TOKENS + max(map(len, self._prompts), default=0))
        return [
            decode_trajectory(
                model,
                Request(
                    prompt_ids=tuple(int(token) for token in prompt),
                    max_tokens=most - len(prompt),
                    seed=self._seed,
                    sample_index=index,
                    settings=settings,
                    provisional=True,
                ),
            )
            for index, prompt in enumerate(self._prompts)
        ]

    def _samples(self, decodes: Sequence[Trajectory]) -> dict[str, Any]:
        texts = [self._tokenizer.decode([int(token) for token in item.tokens]) for item in decodes]
        texts = [text for text in texts if text.split()]
        if not texts:
            return {"num_texts": 0}
        figures = text_figures(texts, self._judge.score(texts) if self._judge else None)
        found = {name: one.interval().to_json() for name, one in figures.items()}
        return {"num_texts": len(texts), **found}
