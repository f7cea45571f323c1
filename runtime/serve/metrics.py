"""What `/metrics` tells, in the text form that Prometheus reads."""

from __future__ import annotations

from typing import Any

from ..asynchronous import Worker
from ..text_generation import TextResult

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """Counters of one server."""

    def __init__(self, worker: Worker) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "dlm_requests", "Answered requests.", ["route", "status"], registry=registry
        )
        self._texts = Counter(
            "dlm_texts", "Texts that ended.", ["model", "reason"], registry=registry
        )
        self._tokens = Counter("dlm_tokens", "Tokens written.", ["model"], registry=registry)
        self._runs = Counter("dlm_graph_runs", "Graph runs.", ["model"], registry=registry)
        self._engine = Counter(
            "dlm_engine_seconds", "Time that texts spent in graph runs.", ["model"],
            registry=registry,
        )  # fmt: skip
        self._first = Histogram(
            "dlm_first_text_seconds", "From a request to its first text.", ["model"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._whole = Histogram(
            "dlm_request_seconds", "From a request to the end of its answer.", ["route"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        for name, help, function in (
            ("dlm_waiting", "Texts in the queue.", lambda: worker.num_waiting),
            ("dlm_running", "Texts that are being decoded.", lambda: worker.num_running),
        ):
            Gauge(name, help, registry=registry).set_function(function)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Counts a request; status 0: its client went away before an answer."""
        self._requests.labels(route, str(status)).inc()
        self._whole.labels(route).observe(seconds)

    def began(self, model: str, seconds: float) -> None:
        """Counts a request's first text."""
        self._first.labels(model).observe(seconds)

    def ended(self, model: str, result: TextResult) -> None:
        """Counts a text."""
        self._texts.labels(model, result.finish_reason).inc()
        self._tokens.labels(model).inc(len(result.token_ids))
        self._runs.labels(model).inc(result.nfe)
        self._engine.labels(model).inc(result.seconds["engine"])

    def render(self) -> tuple[bytes, str]:
        """Gives the text and its media type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        found: Any = generate_latest(self._registry)
        return found, CONTENT_TYPE_LATEST
