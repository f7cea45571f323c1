"""What a bundle's precision costs, in every figure of the report: measured, with its interval.

Each variant (fp32, fp16, int8, and int8 calibrated otherwise) is measured on the same held-out
text under the same masks, on the same canvases, and on the same decodes. The figures are plain
data: `report_page.py` draws them, `report.json` keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..runtime.engines.base import EngineSet
from ..runtime.families import decoding_settings
from ..runtime.families.base import Request
from ..runtime.manifest import Manifest
from ..runtime.tokenizer import Tokenizer
from .agreement import Reference, Trajectory, decode_trajectory, trajectory_agreement
from .bench import Models
from .judge import Judge
from .loss import LossText, Ratio
from .text_quality import measure

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured of one variant."""

    name: str
    title: str
    """For people."""
    num_bytes: int
    """Of its graphs and weights."""
    perplexity: dict[str, float]
    """The bound's, with its interval over the masks."""
    ratio: Ratio
    """Perplexity over fp32's, in pairs."""
    agreement: dict[str, Any]
    """With fp32 on equal canvases."""
    trajectory: dict[str, Any]
    """With fp32's decodes of equal prompts and seeds."""
    samples: dict[str, Any]
    """Of the decoded texts: external judge's perplexity (None without a judge), entropy, …"""

    def to_json(self) -> dict[str, Any]:
        """Returns the figures for a report."""
        return asdict(self)


class Examiner:
    """Measures variants against the floating-point model, which is measured first."""

    def __init__(
        self,
        manifest: Manifest,
        engines: EngineSet,
        *,
        text: LossText,
        canvases: Sequence[Any],
        prompts: Sequence[np.ndarray],
        tokenizer: Tokenizer,
        judge: Judge | None,
        seed: int,
        progress: Progress = lambda done, total: None,
    ) -> None:
        """Runs the reference.

        Args:
            manifest: Of the fp32 draft.
            engines: The fp32 graphs.
            text: To measure the bound on.
            canvases: Held-out ones, for agreement.
            prompts: (L,) int32 each: continued for trajectories and samples.
            tokenizer: Writes samples out.
            judge: Of samples; None: entropy only.
            seed: Of the decodes.
            progress: Told of windows of text.
        """
        self._manifest, self._text, self._judge = manifest, text, judge
        self._prompts, self._tokenizer, self._seed = prompts, tokenizer, seed
        self.totals = text.totals(manifest, engines, progress)
        """(samples, windows) nats of the reference."""
        self._reference = Reference(manifest, engines, canvases)
        self._decodes = self._decode(engines)

    def measure(
        self, engines: EngineSet, progress: Progress = lambda done, total: None
    ) -> np.ndarray:
        """Measures a variant's bound: (samples, windows) nats."""
        return self._text.totals(self._manifest, engines, progress)

    def ratio(self, totals: np.ndarray, other: np.ndarray | None = None) -> Ratio:
        """Compares what `measure` gave with the reference, or with another variant's."""
        return self._text.ratio(totals, self.totals if other is None else other)

    def examine(
        self,
        name: str,
        title: str,
        models: Models,
        engines: EngineSet,
        totals: np.ndarray,
    ) -> Figures:
        """Measures the rest of one variant, whose `totals` are known."""
        decodes = self._decode(engines)
        return Figures(
            name=name,
            title=title,
            num_bytes=sum(model.ByteSize() for model in models.values()),
            perplexity=self._text.perplexity(totals),
            ratio=self._text.ratio(totals, self.totals),
            agreement=self._reference.agreement(engines).to_json(),
            trajectory=trajectory_agreement(decodes, self._decodes),
            samples=self._samples(decodes),
        )

    def _decode(self, engines: EngineSet) -> list[Trajectory]:
        settings = decoding_settings(self._manifest, {})
        most = self._manifest.max_position
        return [
            decode_trajectory(
                self._manifest,
                engines,
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
        return asdict(measure(texts, self._judge.score(texts) if self._judge else None))
