"""One recording: engines under a recorder, texts cut to size, and a count of what is done.

Knows no family: block sizes and gaps are what `modes.py` found, masks are the family's own bound's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.manifest import Manifest
from ...runtime.engines import EngineSet, open_engines
from ...runtime.errors import CalibrationError, ConfigError
from ...runtime.families.base import Request
from ...runtime.families.table import find_family, load_model
from .canvases import NUM_DECILES, CanvasSet, Stratum
from .modes import DecodingMode, modes_of, reads_as_it_writes
from .recorder import Recorder, RecordingEngines

Progress = Callable[[int, int], None]
"""Called with (requests and windows done, all of them)."""
MOST_ROUNDS = 4
"""Times that windows are masked until every mask ratio has come up in every shape."""
READ_POSITIONS = 512
"""Of a window of text that is read instead of decoded."""
PROMPT_SHARES = (0.0, 0.125, 0.25, 0.5, 0.75)
"""Lengths of prompts, as shares of the positions there are: so that every context is met."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CanvasSettings:
    """How many canvases to record, and from how much decoding."""

    per_stratum: int = 4
    """Canvases kept per graph, shape, mask-ratio decile and source, if memory allows."""
    num_decodes: int = 6
    """Texts decoded per block size; two where a block is most of a text."""
    num_windows: int = 8
    """Windows of text masked at random, per block size."""
    num_samples: int = 2
    """Random masks of each block of a window; even, since they come in pairs."""
    max_mib: int = 1024
    """Memory that the canvases may take: fewer per stratum are kept if need be."""

    def __post_init__(self) -> None:
        for name in ("per_stratum", "num_decodes", "num_windows", "num_samples", "max_mib"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"calibration {name} must be 1 or more, found {value}")
        if self.num_samples % 2:
            raise ConfigError(f"calibration num_samples must be even, found {self.num_samples}")


class Session:
    """What the three recorders share: engines, recorder, texts cut to size, a progress count."""

    def __init__(
        self,
        bundle: Bundle,
        prompts: Sequence[np.ndarray],
        settings: CanvasSettings,
        seed: int,
        engines: EngineSet | None,
        *,
        unmasked: bool = False,
    ) -> None:
        self.manifest = bundle.manifest
        self.settings, self.seed = settings, seed
        self._owned = open_engines(bundle, "onnxruntime") if engines is None else None
        inner = engines or self._owned
        assert inner is not None
        try:
            self.prompts = _check_prompts(prompts, self.manifest)
            self.read = reads_as_it_writes(load_model(self.manifest, inner))
            """Whether texts are read instead of decoded."""
            # Unmasked canvases have one decile only: it gets what all of them would.
            single = unmasked or self.read
            self.recorder = Recorder(
                self.manifest.mask_token_id,
                per_stratum=settings.per_stratum * (2 * NUM_DECILES if single else 1),
                seed=seed,
                max_bytes=settings.max_mib << 20,
                noise_level=find_family(self.manifest.family).noise_level,
            )
            self.engines = RecordingEngines(inner, self.recorder)
            self.model = load_model(self.manifest, self.engines)
            self.modes = modes_of(self.model)
        except BaseException:
            self.close()
            raise
        self._done, self._total = 0, 1
        self._progress: Progress | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the engines if they were opened here."""
        if self._owned is not None:
            self._owned.close()

    @property
    def blocks(self) -> list[int | None]:
        """Block sizes to mask windows by: all that can be chosen, else the family's own; an exact
        likelihood has no masks, whatever the text is decoded by."""
        if self.model.family.exact:
            return [None]
        chosen = [mode.block for mode in self.modes if not mode.gap]
        return list(dict.fromkeys(chosen))

    def expect(self, num_requests: int, progress: Progress | None) -> None:
        """Sets how much there is to do."""
        self._progress = progress
        self._total = num_requests + len(self.blocks) * self.settings.num_windows

    def step(self, _: int) -> None:
        """Counts one text."""
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)

    def positions(self, block: int | None) -> int:
        """Returns how many positions a text can have at a block size."""
        return self.model.positions(self.model.settings({"block_size": block}))

    def positions_of(self, mode: DecodingMode) -> int:
        """Returns how many positions a text decoded in one way can have."""
        # A gap sees the text on both sides, so that text and gap are one block.
        length = min(self.manifest.max_position, mode.block or 0) if mode.gap else 0
        return length or self.positions(mode.block)

    def num_texts(self, mode: DecodingMode) -> int:
        """Texts to decode in one way: fewer where a run is most of the text, and costs as much.

        Each of them goes through every mask ratio, so that two cover what more would.
        """
        wide = mode.block is not None and 2 * mode.block > self.positions_of(mode)
        return min(2, self.settings.num_decodes) if wide else self.settings.num_decodes

    def requests(self, banned: Sequence[int]) -> Iterator[Request]:
        """Yields what to decode: every mode, prompts of several lengths in turn."""
        for mode in self.modes:
            length = self.positions_of(mode)
            for number in range(self.num_texts(mode)):
                prompt = self.prompts[number % len(self.prompts)]
                share = PROMPT_SHARES[number % len(PROMPT_SHARES)]
                yield mode.request(
                    self.manifest, prompt, length, share, (self.seed, number), tuple(banned)
                )

    def windows(self) -> list[np.ndarray]:
        """Cuts the texts, one behind the other, into windows of the most positions there are.

        Texts that are read instead of decoded have windows of READ_POSITIONS at most, in whole runs
        of the most rows: what enters a layer depends little on how far a text has come.
        """
        stream = np.concatenate(self.prompts).astype(np.int32)
        longest = max(self.positions(block) for block in self.blocks)
        if self.read:
            rows = max(spec.rows for spec in self.model.specs)
            longest = max(min(longest, READ_POSITIONS) // rows, 1) * rows
        size = min(longest, len(stream))
        starts = np.linspace(0, len(stream) - size, self.settings.num_windows).astype(int)
        return [np.ascontiguousarray(stream[start : start + size]) for start in starts]

    def fill(self) -> None:
        """Draws more masks while a stratum has no canvas, a few times at most."""
        if self.model.family.exact:  # further windows would be the same
            return
        for round_number in range(1, MOST_ROUNDS):
            if not self.uncovered():
                break
            self.mask(self.windows(), offset=round_number * self.settings.num_windows, quiet=True)

    def uncovered(self) -> list[Stratum]:
        """Lists the strata without a canvas; none where the rows of one shape are all shapes'."""
        if self.read:
            return []
        chosen = [block for block in self.blocks if block is not None]
        found = CanvasSet(items=self.recorder.canvases(), model_sha256="", recipe={})
        return found.missing(
            self.engines.specs,
            blocks=chosen or [spec.rows for spec in self.engines.specs],
            masked=self.manifest.mask_token_id is not None and not self.model.family.exact,
        )

    def mask(
        self,
        windows: Sequence[np.ndarray],
        *,
        unmask: bool = False,
        offset: int = 0,
        quiet: bool = False,
    ) -> None:
        """Runs the family's bound over windows, for every block size.

        Args:
            unmask: Record the windows' ids in place of masks.
            offset: Added to the seed: other masks.
            quiet: Leave the count of what is done as it is.
        """
        samples = range(1 if self.model.family.exact else self.settings.num_samples)
        for block in self.blocks:
            length = self.positions(block)
            for number, window in enumerate(windows):
                window = window[:length]
                if block is not None:
                    window = window[: max(len(window) // block, 1) * block]
                self.recorder.clean = window if unmask else None
                bounds = self.model.family.bound(
                    self.model, [window],
                    seed=self.seed + number + offset, samples=samples, block_size=block,
                )  # fmt: skip
                for _ in bounds:
                    pass
                self.recorder.flush()
                if not quiet:
                    self.step(number)
        self.recorder.clean = None

    def result(self, kind: str) -> CanvasSet:
        """Packs what was kept."""
        data = hashlib.sha256()
        for prompt in self.prompts:
            data.update(np.ascontiguousarray(prompt, np.int32).tobytes())
        recipe = {
            "kind": kind,
            "uncovered": [list(item) for item in self.uncovered()] if kind == "decode" else [],
            "seed": self.seed,
            "settings": asdict(self.settings),
            "decoding": dict(self.manifest.decoding),
            "num_prompts": len(self.prompts),
            "prompts_sha256": data.hexdigest(),
            "num_runs": self.recorder.num_seen,
        }
        return CanvasSet(
            items=self.recorder.canvases(),
            model_sha256=model_sha256(self.manifest),
            recipe=recipe,
        )


def _check_prompts(prompts: Sequence[np.ndarray], manifest: Manifest) -> list[np.ndarray]:
    """Returns prompts that can be masked; raises CalibrationError if there is none."""
    if not len(prompts):
        raise CalibrationError(
            "there are no calibration prompts: give a text file with documents of the kind that "
            "the model will write"
        )
    block = min(spec.rows for spec in manifest.graphs)
    long = [np.asarray(prompt, np.int32) for prompt in prompts if len(prompt) >= block]
    if not long:
        longest = max(len(prompt) for prompt in prompts)
        raise CalibrationError(
            f"the longest of {len(prompts)} calibration prompts has {longest} tokens, fewer than "
            f"a block of {block}: give longer texts"
        )
    return long


def model_sha256(manifest: Manifest) -> str:
    """Returns a hash of the graphs and weights that a manifest names."""
    members = {name: item.sha256 for name, item in manifest.members.items() if "graphs/" in name}
    text = "".join(f"{name} {members[name]}\n" for name in sorted(members))
    return hashlib.sha256(text.encode()).hexdigest()
