"""The bundles of a server by name: opened on first use, the least used closed for another.

Also describes each for programs that show its settings, from the decoding rules alone. Knows no
HTTP and no family.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..asynchronous import AsyncPipeline, Worker
from ..bundle.bundle import REPORT_NAME, Bundle, open_bundle
from ..chat import read_chat_template
from ..decoding import DecodingRule
from ..errors import BundleError, DlmError
from ..families.table import decoding_settings, rules_of
from ..files import parse_json
from ..measure.machine import read_meminfo
from ..options import Option

_MIB = 1 << 20


class UnknownModelError(DlmError):
    """No bundle of this server has that name."""


class Model:
    """One bundle of a server."""

    def __init__(self, name: str, bundle: Bundle) -> None:
        self.name, self.bundle = name, bundle
        self.pipeline: AsyncPipeline | None = None
        """None: not open now."""
        self.num_users = 0
        """Requests that use it now."""
        self.last_used = 0.0
        self.created = int(bundle.path.stat().st_mtime)
        self.file = _identity(bundle.path)
        """Of the file that was read."""

    @property
    def chats(self) -> bool:
        """Whether it has a chat template."""
        return read_chat_template(self.bundle) is not None

    @property
    def needed_mib(self) -> float:
        """Memory that opening it takes: as its export forecast, else twice its weights."""
        weights = self.bundle.weights_bytes / _MIB
        try:
            report = parse_json(self.bundle.member(REPORT_NAME).read_bytes())
            memory = report["forecast"]["memory"]
            return float(memory["total"] - memory["runtime"])
        except (BundleError, OSError, ValueError, KeyError, TypeError):
            return 2.0 * weights

    def facts(self) -> dict[str, Any]:
        """Gives what `/v1/models` says of it."""
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "dlm-edge"}

    def description(self) -> dict[str, Any]:
        """Gives what a page needs to offer it: its rules with their options, and its card."""
        manifest = self.bundle.manifest
        own = decoding_settings(manifest, {})
        longest = max(manifest.block_sizes, default=64)
        return {
            **self.facts(),
            "loaded": self.pipeline is not None,
            "family": manifest.family,
            "precision": manifest.precision,
            "num_parameters": manifest.model.get("num_parameters"),
            "max_position": manifest.max_position,
            "chat": self.chats,
            "infill": manifest.mask_token_id is not None,
            "decoding": own.to_json(),
            "rules": [
                {
                    "name": rule.name,
                    "help": (rule.__doc__ or "").partition("\n")[0],
                    "options": [
                        self._option(rule, own, item, longest) for item in rule.options().values()
                    ],
                }
                for rule in rules_of(manifest.family)
            ],
            "card": self.bundle.member("card.md").read_text("utf-8")
            if "card.md" in manifest.members
            else "",
        }

    def _option(
        self, rule: type[DecodingRule], own: DecodingRule, item: Option, longest: int
    ) -> dict[str, Any]:
        """Gives one option: its range, the stretch of it that a slider covers, its default."""
        chosen = own.override(rule, {}).to_json()
        default = chosen.get(item.name)
        whole = item.kind is int
        near = [value for value in (default, *item.sweep) if value is not None]
        least = item.at_least if item.at_least is not None else item.above or 0.0
        least = min((least, *item.also))
        most = longest if whole else max(1.0, *(2.0 * value for value in near), least)
        sizes = self.bundle.manifest.block_sizes if item.name == "block_size" else ()
        return {
            "name": item.name,
            "help": item.help,
            "kind": "integer" if whole else "number",
            "range": item.range,
            "default": default,
            "choices": list(sizes),
            "values": list(item.sweep),
            "slider": [least, min(most, item.at_most if item.at_most is not None else most)],
        }


class Models:
    """All bundles of a server, and the thread that decodes with them."""

    def __init__(
        self,
        paths: Sequence[Path],
        worker: Worker,
        *,
        note: Callable[[str], None],
        conversation_bytes: int = 0,
        **options: Any,
    ) -> None:
        """Reads the bundles' manifests; opens no engine.

        Args:
            paths: Bundles; the first is the one meant where a request names none.
            worker: Decodes.
            note: Gets what there is to say, in lines.
            conversation_bytes: For KV caches of conversations, of each open bundle.
            **options: Of `Pipeline.load`.

        Raises:
            BundleError: One cannot be read, or two have one name.
        """
        self.worker, self._note, self._options = worker, note, options
        self._conversation_bytes = conversation_bytes
        self._opening = asyncio.Lock()
        self.all: dict[str, Model] = {}
        for path in paths:
            name = path.stem
            if name in self.all:
                raise BundleError(f"two bundles are called {name}; give one another file name")
            self.all[name] = Model(name, open_bundle(path))

    def find(self, name: object) -> Model:
        """Gives a model by name, None: the first one; raises UnknownModelError."""
        known = list(self.all)
        if name is None:
            name = known[0]
        if not isinstance(name, str) or name not in self.all:
            text = f"{name}"[:64]
            raise UnknownModelError(f"no model {text!r} here, only {', '.join(known)}")
        return self.all[name]

    async def open(self, model: Model) -> AsyncPipeline:
        """Gives a model's pipeline, opened if need be; call `release` when it is not used any more.

        Raises:
            DlmError: As `Pipeline.load`.
        """
        model.num_users += 1
        try:
            # Others may wait for it, too: a client that goes away does not end it.
            return await asyncio.shield(self._opened(model))
        except BaseException:
            self.release(model)
            raise

    def release(self, model: Model) -> None:
        """Says that a request uses a model no more."""
        model.num_users -= 1
        model.last_used = time.monotonic()

    async def close(self) -> None:
        """Closes every model."""
        async with self._opening:
            for model in self.all.values():
                await self._unload(model)

    async def _opened(self, model: Model) -> AsyncPipeline:
        async with self._opening:
            self._check_file(model)
            if model.pipeline is None:
                await self._make_room(model)
                model.pipeline = await self._load(model)
            return model.pipeline

    async def _load(self, model: Model) -> AsyncPipeline:
        begin = time.perf_counter()
        found = await AsyncPipeline.load(model.bundle.path, worker=self.worker, **self._options)
        if model.chats:
            found.pipeline.keep_texts(self._conversation_bytes)
        bundle, engines = found.pipeline.bundle, found.pipeline.engines
        if bundle.sha256 != model.bundle.sha256:
            self._note(f"{model.name}: {bundle.path} is another bundle than at the start")
        model.bundle, model.file = bundle, _identity(bundle.path)
        seconds = time.perf_counter() - begin
        self._note(f"{model.name}: open on {engines.name} in {seconds:.1f} s ({engines.reason})")
        return found

    async def _make_room(self, wanted: Model) -> None:
        """Closes what was used longest ago, until there is memory or nothing idle is left."""
        while (free := read_meminfo().get("MemAvailable")) is not None and free < wanted.needed_mib:
            idle = [m for m in self.all.values() if m.pipeline is not None and not m.num_users]
            if not idle:
                return
            oldest = min(idle, key=lambda model: model.last_used)
            need = f"{wanted.name} needs {wanted.needed_mib:.0f} MiB of {free:.0f}"
            self._note(f"{oldest.name}: closed, because {need}")
            await self._unload(oldest)

    async def _unload(self, model: Model) -> None:
        pipeline, model.pipeline = model.pipeline, None
        if pipeline is not None:
            await pipeline.close()

    def _check_file(self, model: Model) -> None:
        """Says once that the file of an open model is another one now, or gone."""
        now = _identity(model.bundle.path)
        if model.pipeline is not None and now != model.file:
            what = "is gone" if now is None else "was replaced"
            self._note(
                f"{model.name}: {model.bundle.path} {what}; the one that is open goes on, "
                "restart to take the new one"
            )
            model.file = now


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
