"""A bounded sample of canvases: so many per stratum and source, each with an equal chance.

Vitter's algorithm R per stratum, so that memory does not grow with what is decoded; and a bound on
the bytes held, arrays that several canvases share counted once. Where the bound is reached, fewer
are kept of every stratum. Equal seeds and equal offers give equal samples.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np

from ...runtime.errors import CalibrationError
from .canvases import RecordedRun, Stratum


class Reservoir:
    """Keeps some of the canvases that it is offered."""

    def __init__(self, *, per_stratum: int, max_bytes: int | None, seed: int) -> None:
        self.per_stratum = per_stratum
        """Kept of each stratum and source at most; fewer once `max_bytes` is reached."""
        self._max_bytes = max_bytes
        self._seed = seed
        self._kept: dict[tuple[str, Stratum], list[RecordedRun]] = {}
        self._draws: dict[tuple[str, Stratum], tuple[np.random.Generator, int]] = {}
        self._owners: dict[int, tuple[int, int]] = {}
        self.num_bytes = 0
        """Of all arrays held."""

    def offer(self, canvas: RecordedRun) -> None:
        """Keeps a canvas with the chance that makes every one of its stratum equally likely.

        Raises:
            CalibrationError: Not even one canvas of each kind fits.
        """
        key = (canvas.source, canvas.stratum)
        kept = self._kept.setdefault(key, [])
        name = zlib.crc32(repr(key).encode())
        rng, seen = self._draws.get(key) or (np.random.default_rng((self._seed, name)), 0)
        self._draws[key] = (rng, seen + 1)
        if len(kept) < self.per_stratum:
            kept.append(canvas)
        else:
            # A sample that now keeps fewer per stratum stays even.
            place = int(rng.integers(seen + 1))
            if place >= self.per_stratum:
                return
            self._count(kept[place], -1)
            kept[place] = canvas
        self._count(canvas, 1)
        while self._max_bytes is not None and self.num_bytes > self._max_bytes:
            self._sink()

    def __iter__(self) -> Iterator[RecordedRun]:
        return (item for key in sorted(self._kept) for item in self._kept[key])

    def _sink(self) -> None:
        """Drops one canvas of every stratum."""
        assert self._max_bytes is not None
        if self.per_stratum == 1:
            raise CalibrationError(
                f"one canvas of each kind takes more than the {self._max_bytes >> 20} MiB allowed: "
                "allow more, or export fewer block and context sizes"
            )
        self.per_stratum -= 1
        for kept in self._kept.values():
            while len(kept) > self.per_stratum:
                # Places were drawn evenly, so the last one can be dropped as well as any.
                self._count(kept.pop(), -1)

    def _count(self, canvas: RecordedRun, change: int) -> None:
        """Adds or takes away the arrays of one canvas; whole owners count, not views of them."""
        for array in canvas.inputs.arrays.values():
            owner = array if array.base is None else array.base
            users, size = self._owners.get(id(owner), (0, array.nbytes))
            if isinstance(owner, np.ndarray):
                size = owner.nbytes
            if users == 0:
                self.num_bytes += size
            if users + change == 0:
                self.num_bytes -= size
                del self._owners[id(owner)]
            else:
                self._owners[id(owner)] = (users + change, size)
