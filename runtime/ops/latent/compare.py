"""Latents on the device and in NumPy: Gaussians differ by 2e-6 at most, steps by little more."""

from __future__ import annotations

import numpy as np

from ...noise.latent import LatentSchedule, step_table
from ..core import Check, KernelCheck
from ..cuda.ops import CudaOps
from ..host import NumpyOps
from ..rows.compare import on_device
from . import LATENT
from .contract import LatentSpec

DISTANCE = 1e-5
"""Between latents of the two forms, after a few steps."""
RULES = (("ddim", 0.0), ("ddim", 1.0), ("dpm_solver", 0.0))


def compare_steps(
    ops: CudaOps, rule: str, eta: float, *, rows: int, width: int, steps: int = 4, seed: int = 7
) -> list[str]:
    """Takes the same steps on both; returns what differs."""
    spec = LatentSpec(
        rows=rows,
        width=width,
        table=step_table(LatentSchedule(), rule, steps, eta),
        guidance=1.5,
        seed=2**40 + seed,
        sample_index=3,
    )
    rng = np.random.default_rng(seed)
    known = np.arange(rows) % 3 == 0
    given = rng.normal(size=(1, rows, width)).astype(np.float32)
    forms = ops.bind(LATENT), NumpyOps().bind(LATENT)
    device, host = (form.canvas(spec) for form in forms)
    held = [on_device(ops, given)]
    for form, canvas, values in zip(forms, (device, host), (held[0], given), strict=True):
        form.begin(canvas, known, position=11)
        form.give(values, canvas)
    faults = []
    for step in range(steps):
        estimate = rng.normal(size=(1, rows, width)).astype(np.float32)
        held.append(on_device(ops, estimate))
        forms[0].move(held[-1], device)
        forms[0].flush(device)
        forms[1].move(estimate, host)
        for name in ("latents", "before", "known", "level", "guidance"):
            found, wanted = ops.to_host(getattr(device, name)), getattr(host, name)
            if not np.allclose(found, wanted, rtol=DISTANCE, atol=DISTANCE):
                faults.append(f"{rule}, eta {eta}, step {step}: {name} differ")
    if not np.array_equal(ops.to_host(device.latents)[0, known], given[0, known]):
        faults.append(f"{rule}: known latents changed")
    forms[0].check(device)
    return faults


def _move(found: KernelCheck, ops: CudaOps) -> None:
    """Every rule over ragged sizes, from the first noise to the last step."""
    for (rule, eta), (rows, width) in zip(RULES, ((9, 33), (1, 4), (40, 130)), strict=True):
        found.cases, found.rows = found.cases + 1, found.rows + 4 * rows
        found.faults += compare_steps(ops, rule, eta, rows=rows, width=width)


CHECKS: dict[str, Check] = {"move_latents": _move}
