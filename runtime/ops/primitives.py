"""The table of primitives, and every kernel against its NumPy form on the device at hand.

A board's report says how they compare. The tests make the same comparisons over more cases; here
they take seconds and need no test framework.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from .core import Check, KernelCheck, Primitive
from .cuda.ops import CudaOps
from .drafts import DRAFTS
from .drafts import compare as drafts
from .latent import LATENT
from .latent import compare as latent
from .rows import ROWS
from .rows import compare as rows
from .rows.compare import on_device
from .transition import TRANSITION
from .transition import compare as transition
from .unmask import UNMASK
from .unmask import compare as unmask

PRIMITIVES: tuple[tuple[Primitive[Any], Mapping[str, Check]], ...] = (
    (ROWS, rows.CHECKS),
    (UNMASK, unmask.CHECKS),
    (TRANSITION, transition.CHECKS),
    (DRAFTS, drafts.CHECKS),
    (LATENT, latent.CHECKS),
)
"""Every primitive, and the comparisons of its kernels. A family binds what it uses by itself."""
MAX_FAULTS = 5
"""Shown per kernel."""


def check_kernels(ops: CudaOps) -> list[dict[str, Any]]:
    """Runs every kernel of the core and of all primitives; returns one object per kernel."""
    checks: dict[str, Check] = {"append_rows": _append}
    for _, own in PRIMITIVES:
        checks.update(own)
    found = []
    for name, check in checks.items():
        result = KernelCheck(kernel=name)
        try:
            check(result, ops)
        except Exception as error:  # on a GPU that nobody has seen yet, anything
            result.faults.append(f"{type(error).__name__}: {error}")
        result.faults = result.faults[:MAX_FAULTS]
        found.append({**asdict(result), "ok": result.ok})
    return found


def _append(found: KernelCheck, ops: CudaOps) -> None:
    """Rows of one text, and of one of three that share a cache."""
    for width, dtype in ((8, np.float32), (3, np.float16), (5, np.float32), (96, np.float16)):
        for batch in (1, 3):
            target = on_device(ops, np.zeros((40, batch, width), dtype))
            new = np.random.default_rng(width).normal(size=(16, batch, width)).astype(dtype)
            slot = batch // 2
            kv, kv_new = (ops.slot(a, slot, axis=1) for a in (target, on_device(ops, new)))
            ops.append_kv(kv, kv_new, 20, 15)
            expected = np.zeros((40, batch, width), dtype)
            expected[20:35, slot] = new[:15, slot]
            found.cases, found.rows = found.cases + 1, found.rows + 15
            if not np.array_equal(ops.to_host(target), expected):
                found.faults.append(
                    f"rows of {width} {np.dtype(dtype).name}, batch {batch}, are elsewhere"
                )
