"""Canvases on a device: what `unmask` and `transition` share.

A step is two launches, `sample` and `commit`, whose arguments never change, so that engine and
sampling are captured together.
"""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Generic

import numpy as np

from ...errors import ConfigError
from ...gpu.device import DeviceArray
from ..core import Progress
from ..cuda.memory import Blank, TextMemories, TextMemory, Values
from ..cuda.ops import CudaOps
from ..cuda.state import MAX_BLOCK, MAX_VOCAB, permitted_bits, row_threads, write_rows
from ..rows.contract import CHUNK
from .contract import Canvas, CanvasOps, CanvasSpec, CanvasT, Place, SpecT_contra

MAX_ENDS = 6
"""Tokens that can end a text: as many as `canvas.cuh` has room for."""


class CudaPlace(Place):
    """A block, and what the host has seen of it."""

    __slots__ = ("begun", "finished", "steps_in_block")

    def __init__(self) -> None:
        super().__init__()
        self.begun = 0
        """The word of the block's begin."""
        self.steps_in_block = 0
        """Commits enqueued."""
        self.finished = False
        """Whether the last word read says that nothing is masked, so that `shown` is valid."""


class CudaCanvases(CanvasOps[SpecT_contra, CanvasT], Generic[SpecT_contra, CanvasT]):
    """The part of a primitive that does not depend on how positions are committed."""

    layout: np.dtype
    """Of the structure that kernels read."""
    sample_kernel: str
    """Its name, without the type of logits."""
    row_warps: tuple[int, int]
    """Warps at most that share a row of float32, and of float16: what kernels are compiled for."""

    def __init__(self, ops: CudaOps, kernels: Mapping[str, Any]) -> None:
        self._ops, self._device = ops, ops.device
        self._kernels = kernels
        self._memories = TextMemories(ops.device, self.layout)

    @abstractmethod
    def first_values(self, spec: SpecT_contra) -> Values:
        """Gives what the arrays of the primitive's own begin with."""

    @abstractmethod
    def write_state(self, state: Any, spec: SpecT_contra) -> None:
        """Writes what is the primitive's own of the state, pointers aside."""

    @abstractmethod
    def make(self, spec: SpecT_contra, memory: TextMemory) -> CanvasT:
        """Makes the canvas that callers see."""

    def canvas(self, spec: SpecT_contra) -> CanvasT:
        _check_size(spec)
        state = np.zeros(1, self.layout)
        write_rows(state[0], spec)
        state["mask_token_id"] = spec.mask_token_id
        state["num_ends"], state["ends"][0, : len(spec.end_ids)] = len(spec.end_ids), spec.end_ids
        self.write_state(state[0], spec)
        values = {**_block_values(spec), **self.first_values(spec)}
        mapped = {"staged": 2 + 2 * spec.block, "shown": spec.block}
        memory = self._memories.lend(state, values, mapped)
        canvas = self.make(spec, memory)
        memory.user = weakref.ref(canvas)
        return canvas

    def begin_block(
        self,
        canvas: CanvasT,
        ids: np.ndarray,
        masked: np.ndarray,
        *,
        position: int,
        first: int,
    ) -> int:
        place, memory = _parts(canvas)
        words, staged, block = memory.words, memory.mapped["staged"], canvas.block
        if place.begun > words.known:  # the block before has not been seen to read its own
            self._ops.wait(words, place.begun)
        staged[:2] = position, first
        staged[2 : 2 + block] = ids
        staged[2 + block :] = masked
        self.launch_begin(canvas)
        words.launched += 1
        place.begun, place.steps_in_block, place.finished = words.launched, 0, False
        place.begin(position, first, int(np.count_nonzero(masked)))
        return place.num_masked

    def sample(self, logits: DeviceArray, canvas: CanvasT) -> None:
        rows, needed = logits.size // canvas.vocab_size, self.rows_needed(canvas, logits)
        assert rows >= needed, f"{rows} rows of logits for {needed} positions"
        kind = logits.dtype.name
        threads = row_threads(canvas.spec, self.row_warps[kind == "float16"])
        kernel = f"{self.sample_kernel}_{kind}"
        self._launch(kernel, canvas, canvas.block, threads, logits.pointer)

    def rows_needed(self, canvas: CanvasT, logits: DeviceArray) -> int:
        """Gives how many rows of logits a step reads at most."""
        del logits
        return canvas.block

    def commit(self, canvas: CanvasT) -> None:
        place, memory = _parts(canvas)
        self.launch_commit(canvas)
        memory.words.launched += 1
        place.steps_in_block += 1
        place.step += 1 if place.num_masked else 0

    def progress(self, canvas: CanvasT, *, exact: bool = False) -> Progress:
        place, memory = _parts(canvas)
        self._device.flush(repeats=True)
        behind = self._ops.run_ahead and not exact
        if behind and place.steps_in_block == 1:
            return Progress(place.num_masked, 0, 0, False, behind)  # nothing is known yet
        found = self._ops.wait(memory.words, memory.words.launched - int(behind)).progress
        place.num_masked = found.num_masked
        place.finished = found.num_masked == 0
        return found._replace(behind=behind)

    def launch_begin(self, canvas: CanvasT) -> None:
        """Enqueues a block's begin and counts nothing: for those who time it."""
        self._launch("begin_block", canvas, 1, _block_threads(canvas.block), repeats=False)

    def launch_commit(self, canvas: CanvasT) -> None:
        """Enqueues a commit and counts nothing: for those who time it."""
        self._launch("commit", canvas, 1, _block_threads(canvas.block))

    def _launch(
        self,
        kernel: str,
        canvas: CanvasT,
        blocks: int,
        threads: int,
        *pointers: int,
        repeats: bool = True,
    ) -> None:
        pointers = (*pointers, canvas.memory.state.pointer)
        self._ops.launch(self._kernels[kernel], blocks, threads, *pointers, repeats=repeats)

    def ids(self, canvas: CanvasT) -> np.ndarray:
        place, memory = _parts(canvas)
        if place.finished:  # costs no synchronisation
            return memory.mapped["shown"].copy()
        return self._device.download(canvas.ids)[0]

    def masked(self, canvas: CanvasT) -> np.ndarray:
        return self._device.download(canvas.masked)[0].astype(bool)


def _parts(canvas: Canvas) -> tuple[CudaPlace, TextMemory]:
    assert isinstance(canvas.place, CudaPlace)
    return canvas.place, canvas.memory


def _check_size(spec: CanvasSpec) -> None:
    if spec.block > MAX_BLOCK:
        raise ConfigError(f"a block has {MAX_BLOCK} positions at most on a GPU, not {spec.block}")
    if spec.vocab_size > MAX_VOCAB:
        raise ConfigError(
            f"a vocabulary has {MAX_VOCAB} ids at most on a GPU, not {spec.vocab_size}; "
            "use --engine onnxruntime"
        )
    if len(spec.end_ids) > MAX_ENDS:
        raise ConfigError(
            f"{MAX_ENDS} tokens at most can end a text on a GPU, not {len(spec.end_ids)}; "
            "use --engine onnxruntime"
        )


def _block_threads(block: int) -> int:
    return 32 * min(16, -(-block // 32))


def _block_values(spec: CanvasSpec) -> Values:
    """What the arrays that every canvas has begin with."""
    block, chunks = spec.block, -(-spec.vocab_size // CHUNK)
    return {
        "ids": np.full((1, block), spec.mask_token_id, np.int32),
        "masked": np.zeros((1, block), np.uint8),
        "chosen": np.zeros((1, block), np.uint8),
        "candidate": np.zeros((1, block), np.int32),
        "bias": as_type(spec.bias, np.float32),
        "permitted": permitted_bits(spec),
        "sums": Blank((block, chunks), np.float32),
    }


def as_type(values: Any, dtype: Any) -> np.ndarray | None:
    """Gives host values as an array of a type; None as it is."""
    return None if values is None else np.ascontiguousarray(values, dtype)
