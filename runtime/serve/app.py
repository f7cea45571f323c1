"""The server as an ASGI application: routes, and how a request is answered or cut short.

    GET  /                     the page
    GET  /health               whether it works
    GET  /metrics              for Prometheus
    GET  /v1/models[/NAME]     the bundles; one of them with its rules and options
    POST /v1/completions       continue or fill texts
    POST /v1/chat/completions  answer in a conversation

A request ends with its texts, or when its client goes away, its deadline passes or the server
stops; its texts then end within a graph run.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from ..asynchronous import AsyncText, BusyError, Step
from ..errors import ConfigError, DlmError, brief
from ..text_generation import TextResult
from .bodies import Asked, read_asked
from .http import Access, HttpError, Receive, Reply, Scope, Send, header, read_object
from .metrics import Metrics
from .models import Model, Models, UnknownModelError
from .replies import Answer, Canvas

RETRY_SECONDS = 2
"""When to try again where the queue is full."""
MAX_MESSAGE = 400
"""Characters of an error that repeats what a request holds."""
_PAGE = Path(__file__).with_name("page.html")
_Handler = Callable[[Scope, Receive, Reply], Awaitable[None]]


class App:
    """The application."""

    def __init__(
        self,
        models: Models,
        access: Access,
        *,
        deadline: float,
        seed: int | None,
        note: Callable[[str], None],
    ) -> None:
        """Serves bundles.

        Args:
            models: The bundles.
            access: Who may ask.
            deadline: Seconds that a request may take, its time in the queue included.
            seed: Of requests that give none; None: one is drawn for each.
            note: Gets what the operator should know, in lines.
        """
        self._models, self._access, self._deadline, self._note = models, access, deadline, note
        self._seed = seed
        self._stopping = asyncio.Event()
        self._metrics = Metrics(models.worker)
        self._page = _PAGE.read_bytes()
        self._policy = _content_policy(self._page.decode())
        self._routes: dict[tuple[str, str], _Handler] = {
            ("GET", "/"): self._show_page,
            ("GET", "/health"): self._health,
            ("GET", "/metrics"): self._show_metrics,
            ("GET", "/v1/models"): self._list_models,
            ("POST", "/v1/completions"): self._complete,
            ("POST", "/v1/chat/completions"): self._answer,
        }

    def stop(self) -> None:
        """Ends all requests within a graph run, each with an error that says why."""
        self._stopping.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            return
        begin, path = time.perf_counter(), scope["path"]
        origin = header(scope, "origin")
        shared = [("access-control-allow-origin", origin), ("vary", "origin")]
        reply = Reply(send, shared if self._access.shares_with(origin) else ())
        route = path if any(path == known for _, known in self._routes) else "other"
        try:
            self._access.check_place(scope)
            if scope["method"] == "OPTIONS":
                await self._allow(reply)
            else:
                if path not in ("/", "/health"):
                    self._access.check_key(scope)
                await self._handler(scope["method"], path)(scope, receive, reply)
        except ConnectionResetError:
            pass
        except Exception as error:
            await reply.error(self._explain(error))
        self._metrics.answered(route, reply.status, time.perf_counter() - begin)

    def _handler(self, method: str, path: str) -> _Handler:
        if method == "HEAD":
            method = "GET"  # the server leaves the body out
        if (method, path) in self._routes:
            return self._routes[method, path]
        if method == "GET" and path.startswith("/v1/models/"):
            return self._describe_model
        allowed = sorted(known for known, at in self._routes if at == path)
        if allowed:
            raise HttpError(
                405, f"{path} takes {', '.join(allowed)}", headers=[("allow", ", ".join(allowed))]
            )
        raise HttpError(404, "no such address here; docs/serve.md lists them")

    async def _allow(self, reply: Reply) -> None:
        """Answers a browser that asks before it lets a page of another origin ask."""
        await reply.whole(
            b"",
            "text/plain",
            204,
            [
                ("access-control-allow-methods", "GET, POST"),
                ("access-control-allow-headers", "authorization, content-type"),
                ("access-control-max-age", "600"),
            ],
        )

    async def _show_page(self, scope: Scope, receive: Receive, reply: Reply) -> None:
        policy = [("content-security-policy", self._policy), ("referrer-policy", "no-referrer")]
        await reply.whole(self._page, "text/html; charset=utf-8", headers=policy)

    async def _health(self, scope: Scope, receive: Receive, reply: Reply) -> None:
        worker = self._models.worker
        facts = {"waiting": worker.num_waiting, "running": worker.num_running}
        await reply.json({"status": "ok", **facts})

    async def _show_metrics(self, scope: Scope, receive: Receive, reply: Reply) -> None:
        await reply.whole(*self._metrics.render())

    async def _list_models(self, scope: Scope, receive: Receive, reply: Reply) -> None:
        facts = [model.facts() for model in self._models.all.values()]
        await reply.json({"object": "list", "data": facts})

    async def _describe_model(self, scope: Scope, receive: Receive, reply: Reply) -> None:
        model = self._models.find(scope["path"].removeprefix("/v1/models/"))
        await reply.json(model.description())

    async def _complete(self, scope: Scope, receive: Receive, reply: Reply) -> None:
        await self._write(scope, receive, reply, chat=False)

    async def _answer(self, scope: Scope, receive: Receive, reply: Reply) -> None:
        await self._write(scope, receive, reply, chat=True)

    async def _write(self, scope: Scope, receive: Receive, reply: Reply, *, chat: bool) -> None:
        """Answers a request for texts, or cuts it short."""
        begin = time.perf_counter()
        body = await read_object(scope, receive)
        model = self._models.find(body.get("model"))

        async def work() -> None:
            pipeline = await self._models.open(model)
            try:
                asked = read_asked(body, pipeline.pipeline, chat=chat, seed=self._seed)
                client = (scope.get("client") or ("",))[0], header(scope, "authorization")
                texts = pipeline.submit(asked.texts, client)
                try:
                    send = self._stream if asked.stream else self._whole
                    await send(reply, asked, texts, model, begin)
                finally:
                    for text in texts:
                        text.leave()
            finally:
                self._models.release(model)

        match await self._first_of(work(), _gone(receive), self._stopping.wait()):
            case 1:
                raise ConnectionResetError("the client went away")
            case 2:
                raise HttpError(503, "the server is stopping; ask again soon", headers=_later())
            case None:
                raise HttpError(504, f"not finished within {self._deadline:g} s: ask for less")

    async def _first_of(self, *work: Coroutine[Any, Any, Any]) -> int | None:
        """Waits for the first to end and cancels the others.

        Returns:
            Its number; None: the deadline came first. What it raises is raised.
        """
        tasks = [asyncio.ensure_future(item) for item in work]
        try:
            await asyncio.wait(tasks, timeout=self._deadline, return_when=asyncio.FIRST_COMPLETED)
            done = next((index for index, task in enumerate(tasks) if task.done()), None)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if done is not None:
            tasks[done].result()
        return done

    async def _whole(
        self, reply: Reply, asked: Asked, texts: list[AsyncText], model: Model, begin: float
    ) -> None:
        waited, results = [], []
        for text in texts:
            await text.began()
            waited.append(text.waited)
        for text in texts:
            results.append(await text.result())
            self._metrics.ended(model.name, results[-1])
        self._metrics.began(model.name, time.perf_counter() - begin)
        await reply.json(Answer(asked, model.name).whole(results, waited))

    async def _stream(
        self, reply: Reply, asked: Asked, texts: list[AsyncText], model: Model, begin: float
    ) -> None:
        answer = Answer(asked, model.name)
        canvases = [Canvas(text) if asked.provisional else None for text in texts]
        results: dict[int, TextResult] = {}
        first = True
        async for index, event in _merged(texts):
            canvas = canvases[index]
            if event is None:  # its turn has come, and it can be served
                head = answer.first(index)
                if head is not None:
                    await reply.event(head)
            elif isinstance(event, TextResult):
                results[index] = event
                self._metrics.ended(model.name, event)
                seen = canvas.end(event) if canvas else None
                if seen:
                    await reply.event(answer.piece(index, "", seen))
                await reply.event(answer.last(index, event, texts[index].waited))
            else:
                piece = "".join(span.text for span in event.spans)
                seen = canvas.after(event) if canvas else None
                if piece or seen:
                    if first:
                        self._metrics.began(model.name, time.perf_counter() - begin)
                        first = False
                    await reply.event(answer.piece(index, piece, seen))
        if asked.include_usage:
            await reply.event(answer.usage([results[index] for index in range(len(texts))]))
        await reply.event("[DONE]")
        await reply.end()

    def _explain(self, error: Exception) -> HttpError:
        """Says what a client may know of an error; the operator gets the rest."""
        match error:
            case HttpError():
                return error
            case UnknownModelError():
                return HttpError(404, str(error), code="model_not_found", param="model")
            case ConfigError():
                return HttpError(400, brief(error, MAX_MESSAGE))
            case BusyError():
                return HttpError(503, str(error), headers=_later())
            case DlmError():
                self._note(str(error))
                return HttpError(503, "the model cannot be run; the server's log says why")
        self._note("".join(traceback.format_exception(error)).rstrip())
        return HttpError(500, "the server failed; its log says how")


async def _merged(
    texts: list[AsyncText],
) -> AsyncIterator[tuple[int, Step | TextResult | None]]:
    """Yields what becomes of texts, each with its number, as it comes."""
    if len(texts) == 1:
        async for event in _events(texts[0]):
            yield 0, event
        return
    events: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()

    async def read(index: int, text: AsyncText) -> None:
        try:
            async for event in _events(text):
                await events.put((index, event))
        except Exception as error:
            await events.put((index, error))

    tasks = [asyncio.ensure_future(read(index, text)) for index, text in enumerate(texts)]
    try:
        left = len(texts)
        while left:
            index, event = await events.get()
            if isinstance(event, Exception):
                raise event
            left -= isinstance(event, TextResult)
            yield index, event
    finally:
        for task in tasks:
            task.cancel()


async def _events(text: AsyncText) -> AsyncIterator[Step | TextResult | None]:
    """Yields what becomes of a text: None when it begins, its steps, the result."""
    await text.began()
    yield None
    async for step in text.steps():
        yield step
    yield await text.result()


async def _gone(receive: Receive) -> None:
    """Waits until the client goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _later() -> list[tuple[str, str]]:
    return [("retry-after", str(RETRY_SECONDS))]


def _content_policy(page: str) -> str:
    """Allows the page its own script and style and this server, and nothing else."""

    def hashes(tag: str) -> str:
        found = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = [hashlib.sha256(text.encode()).digest() for text in found]
        allowed = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
        return " ".join(allowed) or "'none'"

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
