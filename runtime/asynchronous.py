"""The Python API for event loops: one thread decodes, any number of tasks wait for its texts.

    async with await AsyncPipeline.load("model.dlm") as pipeline:
        async for span in pipeline.generate("Once upon a time"):
            print(span.text, end="", flush=True)

        texts = [pipeline.generate("The dog", seed=seed) for seed in range(4)]
        print(*[(await text.result()).text for text in texts], sep="\\n")

A `Worker` is the thread. It owns the engines of its pipelines: it opens them, runs them and closes
them. Texts wait in a queue for each client, and the clients take turns. One text decodes at a time;
where a bundle has graphs with a batch and it pays, waiting texts start together, and later ones
join in as slots become free. A text is the same alone and beside any others.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from .chat import ask_answer
from .errors import DlmError
from .pipeline import Pipeline
from .side_by_side import SideBySide
from .text.template import Template
from .text_generation import TextGeneration, TextRequest, TextResult, TextSpan

_Found = TypeVar("_Found")

MAX_WAITING = 64
"""Texts that wait for their turn at most."""
LONE_COST = 1.25
"""A text that nobody waits beside starts in a batch, where others can join it, if that makes its
runs no slower than so many times."""


class BusyError(DlmError):
    """More texts wait than the queue holds; or the worker has been closed."""


class LeftError(DlmError):
    """A text was left before it began."""


class Step(NamedTuple):
    """What one graph run changed."""

    nfe: int
    """Graph runs so far."""
    spans: list[TextSpan]


class AsyncText:
    """A text on its way: iterate over its spans or its `steps`, or await its `result`.

    Made by an `AsyncPipeline`, inside the event loop that reads it.
    """

    def __init__(self, pipeline: Pipeline, asked: TextRequest, worker: Worker) -> None:
        self.pipeline, self.asked = pipeline, asked
        self.left = False
        """True once no more is wanted of it."""
        self.waited = 0.0
        """Seconds in the queue, once the text has begun."""
        self._asked_at = time.perf_counter()
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._steps: asyncio.Queue[Step | None] = asyncio.Queue()
        self._began: asyncio.Future[None] = self._loop.create_future()
        self._result: asyncio.Future[TextResult] = self._loop.create_future()
        self._result.add_done_callback(lambda done: done.cancelled() or done.exception())

    @property
    def given_ids(self) -> tuple[int, ...]:
        """The canvas as it starts: the prompt, or a template with mask ids in its gaps."""
        return self.asked.template[1].ids if self.asked.template else self.asked.request.prompt_ids

    async def began(self) -> None:
        """Waits for the text's turn; raises what keeps it from starting."""
        await asyncio.wait([self._began, self._result], return_when=asyncio.FIRST_COMPLETED)
        if self._result.done():
            self._result.result()

    async def steps(self) -> AsyncIterator[Step]:
        """Yields what each graph run changed; runs that changed nothing are passed over.

        Leaves the text when the iteration ends.

        Raises:
            DlmError: The model cannot serve the request, or an engine failed.
        """
        try:
            while (step := await self._steps.get()) is not None:
                yield step
            self._result.result()
        finally:
            self.leave()

    async def __aiter__(self) -> AsyncIterator[TextSpan]:
        async for step in self.steps():
            for span in step.spans:
                yield span

    async def result(self) -> TextResult:
        """Waits for the end; `finish_reason` is `interrupted` if the text was left.

        Raises:
            DlmError: As `steps`.
        """
        return await asyncio.shield(self._result)

    def leave(self) -> None:
        """Wants no more: the text ends within a graph run, or never begins."""
        self.left = True
        self._worker.forget(self)

    def begin(self) -> None:
        """Says that the text is being decoded."""
        self.waited = time.perf_counter() - self._asked_at
        self.tell(None)

    def tell(self, event: Step | TextResult | Exception | None) -> None:
        """Passes on what the worker's thread has to say; None: the text has begun."""
        try:
            self._loop.call_soon_threadsafe(self._take, event)
        except RuntimeError:  # the event loop is closed: nobody reads any more
            self.left = True

    def _take(self, event: Step | TextResult | Exception | None) -> None:
        if isinstance(event, Step):
            self._steps.put_nowait(event)
        elif event is None:
            self._began.set_result(None)
        elif not self._result.done():
            self._steps.put_nowait(None)
            if isinstance(event, TextResult):
                self._result.set_result(event)
            else:
                self._result.set_exception(event)


class Worker:
    """The thread that opens, runs and closes pipelines, one graph run at a time."""

    def __init__(self, *, max_waiting: int = MAX_WAITING) -> None:
        """Starts the thread; `close` ends it."""
        self.max_waiting = max_waiting
        self._lock = threading.Condition()
        self._calls: deque[Callable[[], None]] = deque()
        self._waiting: dict[Hashable, deque[AsyncText]] = {}
        self._running: list[tuple[AsyncText, TextGeneration]] = []
        self._group: SideBySide | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="dlm-edge worker", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Texts that wait for their turn."""
        return sum(map(len, list(self._waiting.values())))

    @property
    def num_running(self) -> int:
        """Texts that are being decoded."""
        return len(self._running)

    def call(self, function: Callable[[], _Found]) -> asyncio.Future[_Found]:
        """Has the thread call a function between two graph runs; returns what to await."""
        found: Future[_Found] = Future()

        def call() -> None:
            if not found.set_running_or_notify_cancel():
                return  # nobody waits any more
            try:
                found.set_result(function())
            except BaseException as error:
                found.set_exception(error)

        with self._lock:
            if self._closed:
                raise BusyError("the worker is closed; make another one")
            self._calls.append(call)
            self._lock.notify()
        return asyncio.wrap_future(found)

    def submit(self, texts: Sequence[AsyncText], client: Hashable) -> None:
        """Has texts wait for their turn, all or none; raises BusyError."""
        with self._lock:
            waiting = self.num_waiting
            if self._closed or waiting + len(texts) > self.max_waiting:
                found = "it is closing" if self._closed else f"{waiting} texts wait already"
                raise BusyError(f"the queue takes no {len(texts)} more texts: {found}; try later")
            self._waiting.setdefault(client, deque()).extend(texts)
            self._lock.notify()

    def forget(self, text: AsyncText) -> None:
        """Takes a text out of the queue, if it waits there."""
        with self._lock:
            for client, line in self._waiting.items():
                if text in line:
                    line.remove(text)
                    if not line:
                        del self._waiting[client]
                    text.tell(LeftError("the text was left before it began"))
                    return

    def close(self) -> None:
        """Ends the thread, and whatever it decodes, within a graph run."""
        with self._lock:
            self._closed = True
            texts = [text for line in self._waiting.values() for text in line]
            self._lock.notify()
        for text in texts:
            text.leave()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._lock:
                while not (self._calls or self._waiting or self._running or self._closed):
                    self._lock.wait()
                calls = [self._calls.popleft() for _ in range(len(self._calls))]
            self._end_left()
            for call in calls:
                call()
            self._admit()
            if self._running:
                self._advance()
            elif self._closed and not self._calls:
                return

    def _admit(self) -> None:
        """Starts the text whose turn it is, and those that can share its runs."""
        if not self._running and (text := self._next()):
            self._group = self._group_for(text.pipeline)
            self._begin(text)
        while self._running and self._group is not None and self._group.num_free:
            text = self._next(self._running[0][0].pipeline)
            if text is None:
                return
            self._begin(text)

    def _next(self, pipeline: Pipeline | None = None) -> AsyncText | None:
        """Takes the text whose turn it is out of the queue, if it is of a pipeline (None: any)."""
        with self._lock:
            if not self._waiting:
                return None
            client = next(iter(self._waiting))
            if pipeline not in (None, self._waiting[client][0].pipeline):
                return None
            line = self._waiting.pop(client)
            text = line.popleft()
            if line:
                self._waiting[client] = line  # behind all others
            return text

    def _group_for(self, pipeline: Pipeline) -> SideBySide | None:
        """Gives what a text and those that wait beside it start in; None: it starts alone."""
        with self._lock:
            waiting = [text for line in self._waiting.values() for text in line]
        count = 1 + sum(text.pipeline is pipeline for text in waiting)
        times = pipeline.batch_times
        if count == 1 and times is not None and times.together <= LONE_COST * times.alone:
            count = 2
        return pipeline.group(min(count, pipeline.most_together)) if count > 1 else None

    def _begin(self, text: AsyncText) -> None:
        try:
            generation = text.pipeline.start(text.asked, self._group)
        except Exception as error:
            text.tell(error)
        else:
            self._running.append((text, generation))
            text.begin()

    def _end_left(self) -> None:
        """Ends the texts that are wanted no more, before a call may close their pipeline."""
        for text, generation in list(self._running):
            if text.left or self._closed:
                generation.leave()
                self._running.remove((text, generation))
                text.tell(generation.so_far())

    def _advance(self) -> None:
        """Makes a graph run for every text that is being decoded, or one for all of them."""
        try:
            for text, generation in list(self._running):
                if text.left:
                    continue
                if spans := generation.step():
                    text.tell(Step(generation.nfe, spans))
                if generation.done:
                    self._running.remove((text, generation))
                    text.tell(generation.so_far())
        except Exception as error:  # texts that share a run share its failure
            for text, generation in self._running:
                generation.leave()
                text.tell(error)
            self._running.clear()


class AsyncPipeline:
    """A bundle ready to generate for the tasks of an event loop."""

    def __init__(self, pipeline: Pipeline, worker: Worker) -> None:
        """Takes a pipeline that the worker's thread opened; `load` does both."""
        self.pipeline, self.worker = pipeline, worker
        self._owns_worker = False

    @classmethod
    async def load(
        cls, path: str | Path | None = None, *, worker: Worker | None = None, **options: Any
    ) -> AsyncPipeline:
        """Opens a bundle.

        Args:
            path: the `.dlm` file; None: the small model that ships with the package.
            worker: the thread that decodes, of several pipelines; None: one of its own.
            **options: as `Pipeline.load`'s.

        Raises:
            DlmError: as `Pipeline.load`.
        """
        chosen = worker or Worker()

        def load() -> Pipeline:
            pipeline = Pipeline.load(path, **options)
            _ = pipeline.most_together  # measures it, before anyone waits
            return pipeline

        try:
            found = cls(await chosen.call(load), chosen)
        except BaseException:
            if worker is None:
                chosen.close()
            raise
        found._owns_worker = worker is None
        return found

    def generate(self, prompt: str = "", *, client: Hashable = None, **options: Any) -> AsyncText:
        """Continues a prompt, when its turn comes.

        Args:
            prompt: as `Pipeline.generate`'s.
            client: whose text it is; clients take turns.
            **options: as `Pipeline.generate`'s, without num_samples.

        Raises:
            ConfigError: as `Pipeline.generate`.
            BusyError: too many texts wait.
        """
        return self.submit([self.pipeline.ask(prompt, **options)], client)[0]

    def infill(
        self, template: str | Template, *, client: Hashable = None, **options: Any
    ) -> AsyncText:
        """Fills the gaps of a template; options and errors of `Pipeline.infill` and `generate`."""
        return self.submit([self.pipeline.ask_infill(template, **options)], client)[0]

    def answer(
        self, messages: Sequence[tuple[str, str]], *, client: Hashable = None, **options: Any
    ) -> AsyncText:
        """Answers the last of a conversation's messages, (role, text) each; see `ask_answer`."""
        return self.submit([ask_answer(self.pipeline, messages, **options)], client)[0]

    def submit(self, asked: Sequence[TextRequest], client: Hashable = None) -> list[AsyncText]:
        """Has checked requests wait for their turn, all or none; raises BusyError."""
        texts = [AsyncText(self.pipeline, item, self.worker) for item in asked]
        self.worker.submit(texts, client)
        return texts

    async def close(self) -> None:
        """Releases sessions and buffers; its texts must have ended."""
        await self.worker.call(self.pipeline.close)
        if self._owns_worker:
            await asyncio.to_thread(self.worker.close)

    async def __aenter__(self) -> AsyncPipeline:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
