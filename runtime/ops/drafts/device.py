"""Drafting and verifying as kernels on a device.

A step is four launches whose arguments never change, so that run and step are captured together;
how many drafts were kept, and so which proposal is read and how many cache rows are written, is
known on the device first. The host waits once per step, for a word in mapped memory beside the ids
that became certain.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import ConfigError
from ..cuda.memory import Blank, TextMemories, Values
from ..cuda.ops import COPY_BLOCKS, CudaOps, pitches
from ..cuda.state import permitted_bits, read_struct, row_threads, write_rows
from ..rows.contract import CHUNK
from .contract import MAX_STOPS, DraftOps, Drafts, DraftSpec, Verified

DRAFT_KERNELS = (
    "begin_drafts", "settle", "append_kept",
    "verify_float32", "verify_float16", "verify_mixed_float32", "verify_mixed_float16",
    "propose_float32", "propose_float16",
)  # fmt: skip
DRAFT_STATE = read_struct("drafts/drafts.cuh", "Drafts")
WEIGHT_BYTES = 32
"""Kept per draft of how its logits became weights."""
ROW_WARPS = 12
"""Warps at most that share a row: what the kernels are compiled for."""
_GROUP = 4 * CHUNK
"""Weights that are summed together, so that rows of logits are as long as whole groups."""


@dataclass(slots=True, kw_only=True, eq=False)
class DeviceDrafts(Drafts):
    """A text's drafts on a device."""

    drafted: np.dtype | None = None
    """Of the logits that the last drafts came from; the same bytes hold either type."""


class CudaDrafts(DraftOps):
    """The primitive `drafts` on a device."""

    def __init__(self, ops: CudaOps) -> None:
        """Compiles the kernels, or finds them compiled; DeviceError if that fails."""
        self._ops, self._device = ops, ops.device
        self._kernels = ops.kernels("drafts/draft.cu", DRAFT_KERNELS)
        self._memories = TextMemories(ops.device, DRAFT_STATE)

    def drafts(self, spec: DraftSpec) -> Drafts:
        if len(spec.stops) > MAX_STOPS:
            raise ConfigError(f"{MAX_STOPS} tokens at most can end a text, not {len(spec.stops)}")
        memory = self._memories.lend(_state_of(spec), _values_of(spec), {"shown": spec.block})
        own: dict[str, Any] = {name: memory.arrays[name] for name in ("ids", "start", "held")}
        drafts = DeviceDrafts(spec=spec, memory=memory, **own)
        memory.user = weakref.ref(drafts)
        return drafts

    def begin_drafts(self, drafts: Drafts, *, start: int, position: int) -> None:
        self._launch("begin_drafts", drafts, 1, 32, numbers=(start, position), repeats=False)
        drafts.position = position

    def verify(
        self, rows: Any, drafts: Drafts, *, first: Any | None = None, stride: int = 1
    ) -> None:
        self.launch_verify(rows, drafts, first=first, stride=stride)
        self._launch("settle", drafts, 1, 32)
        drafts.memory.words.launched += 1
        drafts.step += 1

    def launch_verify(
        self, rows: Any, drafts: Drafts, *, first: Any | None = None, stride: int = 1
    ) -> None:
        """Enqueues what is found of each row and settles nothing: for those who time it."""
        assert isinstance(drafts, DeviceDrafts)
        assert drafts.drafted in (None, rows.dtype), "drafts came from another type"
        spec = drafts.spec
        num_rows, threads = rows.size // spec.vocab_size, row_threads(spec, ROW_WARPS)
        if spec.beta == 1.0:
            self._launch(f"verify_{rows.dtype.name}", drafts, num_rows, threads, rows.pointer)
            return
        assert first is not None, "beta is below 1: first masks are needed"
        kernel, pointers = f"verify_mixed_{rows.dtype.name}", (rows.pointer, first.pointer)
        self._launch(kernel, drafts, num_rows, threads, *pointers, numbers=(stride,))

    def append_kept(self, kv: Any, kv_new: Any, drafts: Drafts) -> None:
        numbers = (*pitches(kv), kv.shape[0])
        pointers = (kv.pointer, kv_new.pointer)
        self._launch("append_kept", drafts, COPY_BLOCKS, 256, *pointers, numbers=numbers)

    def propose(self, masks: Any, drafts: Drafts) -> None:
        assert isinstance(drafts, DeviceDrafts)
        spec = drafts.spec
        if spec.block == 1:
            return
        everything = masks.size // spec.vocab_size != spec.block
        drafts.drafted = masks.dtype
        self._launch(
            f"propose_{masks.dtype.name}",
            drafts,
            spec.block - 1,
            row_threads(spec, ROW_WARPS),
            masks.pointer,
            numbers=(int(everything),),
        )

    def verified(self, drafts: Drafts) -> Verified:
        self._device.flush(repeats=True)
        memory = drafts.memory
        found = self._ops.wait(memory.words, memory.words.launched).progress
        ids = tuple(memory.mapped["shown"][: found.num_committed].tolist())
        return Verified(found.num_committed, ids, found.ended)

    def draft_ids(self, drafts: Drafts) -> tuple[int, ...]:
        return tuple(self._device.download(drafts.ids)[0, : drafts.block].tolist())

    def _launch(
        self,
        kernel: str,
        drafts: Drafts,
        blocks: int,
        threads: int,
        *pointers: int,
        numbers: tuple[int, ...] = (),
        repeats: bool = True,
    ) -> None:
        self._ops.launch(
            self._kernels[kernel],
            blocks,
            threads,
            *pointers,
            drafts.memory.state.pointer,
            numbers=numbers,
            repeats=repeats,
        )


def _state_of(spec: DraftSpec) -> np.ndarray:
    """Gives the state that kernels read, (1,) DRAFT_STATE, pointers aside."""
    state = np.zeros(1, DRAFT_STATE)
    write_rows(state[0], spec)
    state["stride"] = 0 if spec.sampling.greedy else _stride(spec)
    state["num_stops"], state["stops"][0, : len(spec.stops)] = len(spec.stops), spec.stops
    state["share"], state["rest"] = spec.beta, 1.0 - spec.beta
    return state


def _values_of(spec: DraftSpec) -> Values:
    block, chunks, drawn = spec.block, -(-spec.vocab_size // CHUNK), not spec.sampling.greedy
    held = (1, block, spec.vocab_size)
    return {
        "ids": np.full((1, block * (1 + block)), spec.mask_token_id, np.int32),
        "start": Blank((1,), np.int32),
        "held": Blank(held, spec.held) if spec.held else None,
        "permitted": permitted_bits(spec),
        "sums": Blank((block, chunks), np.float32),
        "logits": Blank((block, _stride(spec)), np.float32) if drawn else None,
        "weights": Blank((block, WEIGHT_BYTES), np.uint8) if drawn else None,
        "shares": Blank((block,), np.float64),
        "token": Blank((block,), np.int32),
        "kept": Blank((block,), np.uint8),
    }


def _stride(spec: DraftSpec) -> int:
    """Gives the length of a row of kept logits: whole groups."""
    return -(-spec.vocab_size // _GROUP) * _GROUP
