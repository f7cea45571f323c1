"""The Python API: open a bundle, write text with it.

    from dlm_edge import Pipeline

    pipeline = Pipeline.load("model.dlm")
    for span in pipeline.generate("Once upon a time"):
        print(span.text, end="", flush=True)

    print(pipeline("Once upon a time", seed=1, temperature=0.8).text)
    print(pipeline.infill("Once upon a time ___ and they were happy.").result().text)

Knows no family. Joins bundle, tokenizer, engines and loop, none of which knows the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from .bundle.bundle import Bundle, default_bundle_path, find_bundle, open_bundle
from .bundle.manifest import Manifest
from .continuation import continuation
from .decoding import DecodingRule, with_steps
from .engines import BuildSettings, EngineSet, open_engines
from .errors import ConfigError
from .families.base import LoadedModel, Request
from .families.table import find_family, load_model
from .frames import Frame, frames
from .generate import Generation, GraphRun
from .kept import KeptTexts
from .side_by_side import BatchTimes, SideBySide, batches, time_batch
from .text.template import DEFAULT_GAP_TOKENS, Template, open_template
from .text.tokenizer import Tokenizer
from .text_generation import TextGeneration, TextRequest, TextResult, TextSpan, request_labels

_Opened = TypeVar("_Opened", bound="Pipeline")

OTHER_NAMES: Mapping[str, str] = {
    "max_new_tokens": "max_tokens, which counts new tokens only",
    "max_length": "max_tokens, which counts new tokens only",
    "num_return_sequences": "num_samples",
    "do_sample": "temperature: 0 takes the most likely token, above 0 draws",
    "stop_strings": "stop",
    "streamer": "nothing: iterating over generate() gives the text as it comes",
}
"""What Hugging Face's `generate` calls an option, and what to give here."""

__all__ = ["Frame", "Pipeline", "TextGeneration", "TextResult", "TextSpan"]


class Pipeline:
    """A bundle ready to generate. One request at a time: they share the KV cache."""

    def __init__(self, bundle: Bundle, model: LoadedModel, tokenizer: Tokenizer) -> None:
        """Joins opened parts; `Pipeline.load` opens them."""
        self.bundle, self.model, self.tokenizer = bundle, model, tokenizer
        self.load_seconds: Mapping[str, float] = {}
        """Wall time of opening bundle, tokenizer and engine."""
        self.observer: Callable[[GraphRun], None] | None = None
        """Called after every graph run of the requests started from now on."""
        self.settle: Callable[[], None] | None = None
        """See `Generation`; for measuring only."""
        self.batch_times: BatchTimes | None = None
        """What decided whether texts share runs; None: no texts were to share any yet."""
        self._missing_ids = tokenizer.missing_ids(bundle.manifest.vocab_size)
        self._last: Generation | None = None
        self._last_reuses = False
        """Whether it is one that others go on from."""
        self._kept: KeptTexts | None = None
        self._group: SideBySide | None = None

    @classmethod
    def load(
        cls: type[_Opened],
        path: str | Path | None = None,
        *,
        engine: str = "auto",
        threads: int | None = None,
        expect_sha256: str | None = None,
        build: BuildSettings | None = None,
        note: Callable[[str], None] = lambda line: None,
        report: Callable[[float, str], None] = lambda fraction, phase: None,
    ) -> _Opened:
        """Opens a bundle.

        Args:
            path: the `.dlm` file; None: the small model that ships with the package.
            engine: `auto`, `onnxruntime` or `tensorrt`; `engines.reason` says why it was taken.
            threads: CPU threads; None: every core this process may use, 8 at most.
            expect_sha256: refuse any other bundle than the one with this hash.
            build: how TensorRT's plans are built where there are none yet.
            note: gets what there is to say meanwhile, in lines.
            report: gets the fraction of a plan's build done and its phase; it takes minutes.

        Raises:
            BundleError: missing, damaged, foreign, or not the expected one.
            EngineError: no backend here runs it.
            DeviceError: the GPU asked for is not there, or has not the memory.
            ConfigError: an unknown engine, or a family that this version does not know.
        """
        laps = [time.perf_counter()]
        place = default_bundle_path() if path is None else path
        bundle = open_bundle(place, expect_sha256=expect_sha256)
        find_family(bundle.manifest.family)
        laps.append(time.perf_counter())
        tokenizer = Tokenizer.load(bundle.member("tokenizer.json"))
        laps.append(time.perf_counter())
        engines = open_engines(bundle, engine, threads, build=build, note=note, report=report)
        laps.append(time.perf_counter())
        pipeline = cls(bundle, load_model(bundle.manifest, engines), tokenizer)
        parts = zip(("bundle", "tokenizer", "engine"), laps, laps[1:], strict=False)
        pipeline.load_seconds = {part: end - begin for part, begin, end in parts}
        return pipeline

    @classmethod
    def from_pretrained(cls: type[_Opened], path: str | Path, **options: Any) -> _Opened:
        """Opens a bundle by its file or the folder that holds it; options and errors of `load`.

        `Pipeline` of `dlm_edge.train.pretrained` opens checkpoints and names of the Hugging Face
        hub as well, which takes PyTorch.
        """
        return cls.load(find_bundle(path), **options)

    @property
    def engines(self) -> EngineSet:
        """What runs the graphs."""
        return self.model.engines

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self.bundle.manifest

    def settings(self, **overrides: Any) -> DecodingRule:
        """Returns the bundle's decoding rule with `overrides` (None: not given) over its options.

        Raises:
            ConfigError: an unknown rule or option, a value out of range, or a contradiction.
        """
        for name in overrides:
            if name in OTHER_NAMES:
                raise ConfigError(f"{name} is unknown here: give {OTHER_NAMES[name]}")
        return self.model.settings(overrides)

    @overload
    def __call__(
        self, prompt: str = "", *, num_samples: None = None, **options: Any
    ) -> TextResult: ...

    @overload
    def __call__(
        self, prompt: str = "", *, num_samples: int, **options: Any
    ) -> list[TextResult]: ...

    def __call__(
        self, prompt: str = "", *, num_samples: int | None = None, **options: Any
    ) -> TextResult | list[TextResult]:
        """Continues a prompt to the end; options and errors of `generate`."""
        if num_samples is None:
            return self.generate(prompt, **options).result()
        return self.generate(prompt, num_samples=num_samples, **options)

    @overload
    def generate(
        self, prompt: str = "", *, num_samples: None = None, **options: Any
    ) -> TextGeneration: ...

    @overload
    def generate(
        self, prompt: str = "", *, num_samples: int, **options: Any
    ) -> list[TextResult]: ...

    def generate(
        self,
        prompt: str = "",
        *,
        num_samples: int | None = None,
        sample_index: int = 0,
        provisional: bool = False,
        **options: Any,
    ) -> TextGeneration | list[TextResult]:
        """Continues a prompt; nothing is computed before the returned object is read.

        Args:
            prompt: what to continue; empty: the model writes what it likes.
            num_samples: give so many finished texts instead, of sample indices from `sample_index`.
            sample_index: different ones give different texts under one seed, at a temperature
                above 0 or with a rule that draws.
            provisional: also yield the canvas after every step, in spans that are not committed.
            **options: max_tokens, seed, stop, slide, conditions and the decoding settings (rule,
                threshold, temperature, …), as `ask` takes them.

        Raises:
            ConfigError: as `ask`.
        """
        if num_samples is not None:
            if num_samples < 1:
                raise ConfigError(f"num_samples must be 1 or more, found {num_samples}")
            if provisional:
                raise ConfigError("several samples come whole: leave provisional out")
            indices = range(sample_index, sample_index + num_samples)
            found: list[TextResult] = []
            size = self.most_together if num_samples > 1 else 1
            for begin in indices[::size]:
                some = range(begin, min(begin + size, indices.stop))
                with self.together(len(some)):
                    texts = [self.generate(prompt, sample_index=i, **options) for i in some]
                found += [text.result() for text in texts]
            return found
        options |= {"sample_index": sample_index, "provisional": provisional}
        return self.start(self.ask(prompt, **options))

    def ask(
        self,
        prompt: str = "",
        *,
        num_steps: int | None = None,
        max_tokens: int | None = None,
        seed: int = 0,
        sample_index: int = 0,
        stop: Sequence[str] = (),
        provisional: bool = False,
        slide: bool = False,
        conditions: Mapping[str, np.ndarray] | None = None,
        **settings: Any,
    ) -> TextRequest:
        """Checks what `generate` is asked for, to be given to `start`; touches no engine.

        Args:
            prompt: as `generate`'s.
            num_steps: another name of the setting `steps`.
            max_tokens: new tokens at most; None: 256, or fewer if the positions that the model
                knows end before. More than fits goes on in a sliding window, and the result says
                `approximate`.
            seed: equal seeds give equal texts.
            sample_index: as `generate`'s.
            stop: the first of these strings to appear ends the text and is left out.
            provisional: as `generate`'s.
            slide: accept a prompt longer than the model can see; only its tail is then seen.
            conditions: what the text depends on beside the prompt, by the name that the bundle
                gives it (`conditions` of `dlm-run --info`), each in the shape and dtype of the
                graph's input. Every condition must be given; most bundles have none.
            **settings: overrides of the decoding settings: rule, threshold, temperature, …

        Raises:
            ConfigError: a setting that is out of range or contradicts another one, a prompt that
                leaves no position to write at, or conditions that are not the bundle's.
        """
        begin = time.perf_counter()
        prompt_ids = self.manifest.framing.prompt(self.tokenizer.encode(prompt))
        return self.ask_ids(
            prompt_ids, begin=begin, max_tokens=max_tokens, seed=seed, sample_index=sample_index,
            stop=stop, provisional=provisional, slide=slide, conditions=conditions,
            **with_steps(settings, num_steps),
        )  # fmt: skip

    @property
    def most_together(self) -> int:
        """Texts that share runs at most.

        1 unless the bundle was exported with a batch that pays here, and while runs are measured.
        Asked for the first time, it times a few runs (`batch_times`).
        """
        sizes = batches(self.model.specs)
        if not sizes or self.observer is not None or self.settle is not None:
            return 1
        if self.batch_times is None:
            self.batch_times = time_batch(self.model, max(sizes))
        return max(sizes) if self.batch_times.gain(max(sizes)) > 1 else 1

    def group(self, count: int) -> SideBySide | None:
        """Makes what lets so many texts share runs; None where they cannot or it does not pay."""
        size = self.most_together if count > 1 else 1
        if self.batch_times is None or not 1 < count <= size or self.batch_times.gain(count) <= 1:
            return None
        return SideBySide(self.model, size)

    @contextmanager
    def together(self, count: int) -> Iterator[None]:
        """Lets so many texts that are started within share runs, where the bundle's graphs can and
        it pays.

        Read them one after the other; each is the same as alone.
        """
        self._group = self.group(count)
        try:
            yield
        finally:
            self._group = None

    def continue_ids(self, prompt_ids: Sequence[int], **options: Any) -> TextGeneration:
        """Continues token ids as `generate` continues text; options and errors of `ask_ids`."""
        return self.start(self.ask_ids(prompt_ids, **options))

    def ask_ids(
        self,
        prompt_ids: Sequence[int],
        *,
        begin: float | None = None,
        end_ids: tuple[int, ...] = (),
        reuse: bool = False,
        max_tokens: int | None = None,
        seed: int = 0,
        sample_index: int = 0,
        stop: Sequence[str] = (),
        provisional: bool = False,
        slide: bool = False,
        conditions: Mapping[str, np.ndarray] | None = None,
        **settings: Any,
    ) -> TextRequest:
        """Checks a request to continue token ids; `ask` has the other arguments.

        Args:
            prompt_ids: What to continue, start token included.
            begin: `time.perf_counter()` when the text's turning into ids began; None: now.
            end_ids: Ids that end the text beside the bundle's.
            reuse: What the last request left in the KV cache need not be computed again.
        """
        begin = time.perf_counter() if begin is None else begin
        if "" in stop:
            raise ConfigError("a stop string must not be empty: it would end every text at once")
        request = continuation(
            self.model,
            prompt_ids,
            self.settings(**settings),
            max_tokens=max_tokens,
            slide=slide,
            seed=seed,
            sample_index=sample_index,
            banned_ids=self._missing_ids,
            end_ids=end_ids,
            provisional=provisional,
            conditions=conditions or {},
        )
        seconds = time.perf_counter() - begin
        return TextRequest(request=request, stop=tuple(stop), reuse=reuse, text_seconds=seconds)

    def start(self, asked: TextRequest, group: SideBySide | None = None) -> TextGeneration:
        """Starts a request, alone or in a slot of a group.

        Raises:
            ConfigError: The model cannot serve it, as it finds now.
        """
        request, group = asked.request, group or self._group
        if group is not None:
            loop: Generation = group.start(request)
        else:
            if asked.reuse or self._kept is not None:
                held = self._held(request, reuse=asked.reuse)
                request = replace(request, num_cached=held)
            loop = self._last = Generation(self.model, request, self.observer, self.settle)
            self._last_reuses = asked.reuse
        labels = request_labels(request, self.engines.name, self.manifest.precision)
        return TextGeneration(loop, asked, self.tokenizer, labels)

    def keep_texts(self, max_bytes: int) -> None:
        """Keeps the KV caches of texts for those that go on from them (`reuse`), although others
        come between; in so many bytes of the host's memory."""
        self._kept = KeptTexts(self.model, max_bytes)

    def _held(self, request: Request, *, reuse: bool) -> int:
        """Gives how many of a prompt's ids the cache holds, having made the best of what is kept.

        Keeps what the cache holds of the text before, if the new one writes over it.
        """
        last, ids = self._last.held if self._last else None, request.prompt_ids
        settings = request.settings or self.settings()
        held = last.num_common(ids, settings, request.conditions) if last else 0
        goes_on = last is None or not self._last_reuses or held == len(last.ids)
        if self._kept is not None and last is not None and not goes_on:
            self._kept.keep(last)
        if not reuse:
            return 0
        if self._kept is not None and (found := self._kept.bring(request, ids, held)):
            # The last text's cache is gone, even if the new one cannot be started.
            self._last, held = None, found
        return min(held, len(ids) - 1)

    def frames(
        self, prompt: str = "", *, template: str | None = None, **options: Any
    ) -> Iterator[Frame]:
        """Generates one text to be looked at: yields the canvas after every step.

        Raises what `generate` does or, given a template with gaps instead of a prompt, `infill`;
        takes the same options, and yields its frames as they are computed.
        """
        if template is not None and prompt:
            raise ConfigError("a template is its own prompt: give one of the two")
        if options.pop("num_samples", None) is not None:
            raise ConfigError("frames show one text: leave num_samples out")
        options["provisional"] = True
        if template is None:
            generation = self.generate(prompt, **options)
        else:
            generation = self.infill(template, **options)
        return frames(generation, self.manifest.mask_token_id, self.tokenizer.decode)

    def infill(self, template: str | Template, **options: Any) -> TextGeneration:
        """Fills the gaps of a template, each with sight of the text on both sides.

        Options and errors of `ask_infill`.
        """
        return self.start(self.ask_infill(template, **options))

    def ask_infill(
        self,
        template: str | Template,
        *,
        gap_tokens: int | Sequence[int] = DEFAULT_GAP_TOKENS,
        num_steps: int | None = None,
        seed: int = 0,
        sample_index: int = 0,
        provisional: bool = False,
        conditions: Mapping[str, np.ndarray] | None = None,
        **settings: Any,
    ) -> TextRequest:
        """Checks what `infill` is asked for, to be given to `start`; touches no engine.

        Args:
            template: fixed text, kept byte for byte, with `___` for each gap (`\\___` is text); a
                space before a gap goes if the gap begins with punctuation.
            gap_tokens: tokens of every gap, or of each; they are filled to the last one.
            num_steps: another name of the setting `steps`.
            seed: equal seeds give equal texts.
            sample_index: different ones give different texts under one seed.
            provisional: also yield the canvas after every step.
            conditions: as `generate`'s.
            **settings: overrides of the decoding settings.

        Raises:
            ConfigError: no gap, a text that no canvas of the bundle holds, fixed text that the
                tokenizer cannot give back, or a model that cannot infill.
        """
        begin = time.perf_counter()
        form, canvas = open_template(template, gap_tokens, self.manifest, self.tokenizer)
        request = Request(
            prompt_ids=(),
            max_tokens=0,
            seed=seed,
            sample_index=sample_index,
            template_ids=canvas.ids,
            settings=self.settings(**with_steps(settings, num_steps)),
            banned_ids=self._missing_ids,
            provisional=provisional,
            conditions=conditions or {},
        )
        seconds = time.perf_counter() - begin
        return TextRequest(request=request, template=(form, canvas), text_seconds=seconds)

    def close(self) -> None:
        """Releases sessions and buffers."""
        self.engines.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
