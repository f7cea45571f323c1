"""Latents by the kernels against NumPy, and NumPy against the definition of a step."""

import numpy as np
import pytest
from dlm_edge.runtime.errors import EngineError
from dlm_edge.runtime.gpu.replay import ReplayingDevice
from dlm_edge.runtime.noise.latent import LatentSchedule, step_table
from dlm_edge.runtime.noise.philox import gaussians
from dlm_edge.runtime.ops.cuda.ops import CudaOps
from dlm_edge.runtime.ops.host import NumpyOps
from dlm_edge.runtime.ops.latent import LATENT
from dlm_edge.runtime.ops.latent.compare import RULES, compare_steps
from dlm_edge.runtime.ops.latent.contract import LatentSpec
from dlm_edge.runtime.ops.rows.compare import on_device
from emulation.device import EmulatedDevice


def make_spec(rows: int = 5, width: int = 6, rule: str = "ddim", steps: int = 4, **fields):
    table = step_table(LatentSchedule(), rule, steps, fields.pop("eta", 0.0))
    return LatentSpec(
        rows=rows, width=width, table=table, guidance=1.0, seed=5, sample_index=2, **fields
    )


@pytest.mark.parametrize(("rule", "eta"), RULES)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 4), (7, 33), (33, 64), (64, 130)])
def test_steps_are_those_of_numpy(cuda, rule, eta, rows, width):
    assert not compare_steps(cuda, rule, eta, rows=rows, width=width)


@pytest.mark.parametrize("downwards", [False, True])
def test_steps_are_the_same_in_any_order_of_threads(downwards):
    ops = CudaOps(EmulatedDevice(downwards=downwards))
    assert not compare_steps(ops, "ddim", 0.5, rows=9, width=70)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_step_is_captured_once_and_replayed_for_the_next_text(asynchronous):
    inner = EmulatedDevice(asynchronous=asynchronous)
    ops = CudaOps(ReplayingDevice(inner))
    form, spec = ops.bind(LATENT), make_spec(steps=12)
    estimate = on_device(ops, np.zeros((1, 5, 6), np.float32))
    for _ in range(2):
        canvas = form.canvas(spec)
        form.begin(canvas, np.zeros(5, bool), position=0)
        allocations = inner.counts["allocations"]
        for _ in range(12):
            form.move(estimate, canvas)
            form.flush(canvas)
        form.check(canvas)
        assert inner.counts["allocations"] <= allocations + 1
        del canvas
    assert inner.counts["replays"] >= 20


def test_a_step_is_what_its_table_says():
    form, spec = NumpyOps().bind(LATENT), make_spec(eta=0.5)
    canvas = form.canvas(spec)
    known = np.array([True, False, False, False, True])
    given = np.random.default_rng(0).normal(size=(1, 5, 6)).astype(np.float32)
    form.begin(canvas, known, position=30)
    z = gaussians(5, 2, 30 + np.arange(5), 0, 6)
    assert np.array_equal(canvas.latents[0], z)
    form.give(given, canvas)
    before = np.zeros((5, 6))
    z = np.where(known[:, None], given[0], z)
    for step, (level, keep, pull, pull_before, noise) in enumerate(spec.table):
        assert canvas.level[0] == np.float32(level)
        estimate = np.random.default_rng(step).normal(size=(5, 6)).astype(np.float32)
        form.move(estimate[None], canvas)
        drawn = gaussians(5, 2, 30 + np.arange(5), step + 1, 6)
        z = keep * z + pull * estimate + pull_before * before + noise * drawn
        z = np.where(known[:, None], given[0], z)
        before = estimate
        assert np.allclose(canvas.latents[0], z, atol=1e-5)
        assert np.array_equal(canvas.before[0], estimate)
    assert canvas.finished
    assert np.allclose(z[~known], before[~known], atol=1e-5), "the last step gives the estimate"


@pytest.mark.parametrize("place", ["host", "device"])
def test_an_estimate_that_is_not_finite_is_an_error_that_names_the_step(place):
    ops = NumpyOps() if place == "host" else CudaOps(EmulatedDevice())
    form = ops.bind(LATENT)
    canvas = form.canvas(make_spec())
    form.begin(canvas, np.zeros(5, bool), position=0)
    good, bad = np.zeros((1, 5, 6), np.float32), np.zeros((1, 5, 6), np.float32)
    bad[0, 3, 5] = np.nan
    values = [good, bad, good] if place == "host" else [on_device(ops, v) for v in (good, bad)] * 2

    def steps():
        for value in values:
            form.move(value, canvas)
            form.flush(canvas)
        form.check(canvas)

    with pytest.raises(EngineError, match="step 2 of 4 is not finite"):
        steps()


def test_draws_depend_on_seed_sample_position_and_step_alone():
    draws = gaussians(1, 0, np.arange(400), 3, 50)
    assert abs(draws.mean()) < 0.02
    assert abs(draws.std() - 1) < 0.02
    assert abs((draws**4).mean() - 3) < 0.15
    assert np.array_equal(draws[100:107], gaussians(1, 0, np.arange(100, 107), 3, 50))
    assert np.array_equal(draws[:, :7], gaussians(1, 0, np.arange(400), 3, 7))
    others = [gaussians(*key, 50) for key in ((2, 0, np.arange(400), 3), (1, 1, np.arange(400), 3))]
    others.append(gaussians(1, 0, np.arange(400), 4, 50))
    for other in others:
        assert abs(np.corrcoef(draws.ravel(), other.ravel())[0, 1]) < 0.03
