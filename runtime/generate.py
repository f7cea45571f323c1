"""The one loop of decoding: run what the update rule asks for, let it update. Knows no family."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .bundle.manifest import GraphSpec
from .decoding import DecodingRule
from .families.base import HEAD_PHASE, LoadedModel, Phased, Request, Resumable, Span


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    """What a decode gave, finished or interrupted."""

    token_ids: tuple[int, ...]
    """The whole text: start token and prompt included, a token that ended it left out."""
    new_token_ids: tuple[int, ...]
    """The generated ones; the whole text when infilling."""
    nfe: int
    """Graph runs, prefill and commit runs included; a head that is a graph of its own is not
    counted apart from the run whose output it finishes."""
    seconds: dict[str, float]
    """`prepare` (making engines ready), `engine` (graph runs), `update` (sampling, selection and
    cache), `host` (the rest) and `total`."""
    finish_reason: str
    """`end` (the model ended the text), `length` (the limit) or `interrupted`."""
    approximate: bool
    """True when a sliding window dropped a part of the text."""

    @property
    def tokens_per_nfe(self) -> float:
        """Generated tokens per graph run; 0 without any run."""
        return len(self.new_token_ids) / self.nfe if self.nfe else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphRun:
    """One graph run and the work around it, for measurements. Seconds are wall time."""

    phase: str
    """What the rule ran the graph for (see `Phased`); `step` where it does not say."""
    spec: GraphSpec
    block: int | None
    """Positions that the rule commits as one block; None: it has no blocks."""
    begin: float
    """`time.perf_counter()` when the loop turned to it."""
    prepare: float
    """Making the engine ready."""
    feed: float
    engine: float
    update: float
    """Sampling, selection and cache."""
    num_committed: int
    """Tokens that became certain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldText:
    """What KV caches hold of a text, and what that depends on beside its ids."""

    ids: tuple[int, ...]
    """The first ids of the text, which need not be computed again."""
    block_size: int | None
    conditions: Mapping[str, np.ndarray]

    def num_common(
        self, ids: Sequence[int], settings: DecodingRule, conditions: Mapping[str, np.ndarray]
    ) -> int:
        """Gives how many of another text's first ids these caches serve for."""
        own = self.conditions
        if getattr(settings, "block_size", None) != self.block_size:
            return 0
        if own.keys() != conditions.keys():
            return 0
        if not all(np.array_equal(own[role], conditions[role]) for role in own):
            return 0
        length = min(len(self.ids), len(ids))
        return next((i for i in range(length) if self.ids[i] != ids[i]), length)


class Generation:
    """One request being decoded: iterate over its spans, or take `step` after step.

    May be left early (Ctrl-C): `result` then holds what was committed until there.
    """

    def __init__(
        self,
        model: LoadedModel,
        request: Request,
        observer: Callable[[GraphRun], None] | None = None,
        settle: Callable[[], None] | None = None,
    ) -> None:
        """Starts the request; raises ConfigError if it cannot be served.

        Args:
            observer: Called after every graph run; its own time is not counted.
            settle: Waits for what was enqueued. An engine that only enqueues is timed with it
                called after every part of a step, which slows it down.
        """
        self._observer, self._settle = observer, settle
        # Copied: the caller may write into its arrays before the next request.
        self._conditions = {role: np.array(value) for role, value in request.conditions.items()}
        self._block_size = getattr(request.settings, "block_size", None)
        begin = time.perf_counter()
        self._rule = model.start(request)
        self.num_cached = len(self.held.ids)
        """Tokens of the prompt that need not be computed again."""
        self._phased = self._rule if isinstance(self._rule, Phased) else None
        self._engines = model.engines
        self._nfe = 0
        self._seconds = {"prepare": 0.0, "engine": 0.0, "update": 0.0}
        self._total = time.perf_counter() - begin

    def __iter__(self) -> Iterator[Span]:
        """Decodes; yields every span. Time spent by the consumer is not counted."""
        try:
            while not self.done:
                yield from self.step()
        finally:
            self.leave()

    @property
    def nfe(self) -> int:
        """Graph runs so far."""
        return self._nfe

    @property
    def done(self) -> bool:
        """True when nothing more will come."""
        return self._rule.done

    def step(self) -> Sequence[Span]:
        """Makes one graph run; returns what changed by it."""
        clock = time.perf_counter
        begin = clock()
        phase = self._phased.phase if self._phased else "step"
        engine = self._engines.engine(self._rule.next_run())
        prepared = clock()
        self._rule.feed(engine)
        if self._settle:
            self._settle()
        fed = clock()
        engine.run()
        if self._settle:
            self._settle()
        ran = clock()
        self._rule.update(engine)
        spans = self._rule.read()
        if self._settle:
            self._settle()
        end = clock()
        self._nfe += phase != HEAD_PHASE
        self._seconds["prepare"] += prepared - begin
        self._seconds["engine"] += ran - fed
        self._seconds["update"] += (end - ran) + (fed - prepared)
        self._total += clock() - begin
        if self._observer is not None:
            spans = tuple(spans)
            self._observer(
                GraphRun(
                    phase=phase,
                    spec=engine.spec,
                    block=self._rule.block_size,
                    begin=begin,
                    prepare=prepared - begin,
                    feed=fed - prepared,
                    engine=ran - fed,
                    update=end - ran,
                    num_committed=sum(len(s.token_ids) for s in spans if s.committed),
                )
            )
        return spans

    def leave(self) -> None:
        """Says that no more steps are wanted."""

    @property
    def result(self) -> GenerationResult:
        """What there is so far."""
        rule = self._rule
        tokens = tuple(rule.tokens.tolist())
        host = max(0.0, self._total - sum(self._seconds.values()))
        reason = "end" if rule.ended else "length"
        return GenerationResult(
            token_ids=tokens,
            new_token_ids=tokens[rule.num_given :],
            nfe=self._nfe,
            seconds={**self._seconds, "host": host, "total": self._total},
            finish_reason=reason if rule.done else "interrupted",
            approximate=rule.approximate,
        )

    @property
    def held(self) -> HeldText:
        """What the caches hold of the text."""
        rule = self._rule
        ids = tuple(rule.cached_ids.tolist()) if isinstance(rule, Resumable) else ()
        return HeldText(ids=ids, block_size=self._block_size, conditions=self._conditions)


def generate(model: LoadedModel, request: Request) -> GenerationResult:
    """Decodes a request to its end; raises ConfigError if it cannot be served."""
    generation = Generation(model, request)
    for _ in generation:
        pass
    return generation.result
