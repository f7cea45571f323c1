"""Slots of a batch: each is what it is alone, beside any others, in NumPy and on the device."""

import numpy as np
import pytest
from dlm_edge.runtime.noise.schedule import make_schedule
from dlm_edge.runtime.noise.transition import transition_table
from dlm_edge.runtime.ops.host import NumpyOps
from dlm_edge.runtime.ops.rows import ROWS
from dlm_edge.runtime.ops.rows.compare import on_device
from dlm_edge.runtime.ops.rows.contract import Sampling
from dlm_edge.runtime.ops.transition import TRANSITION
from dlm_edge.runtime.ops.transition.contract import TransitionSpec
from dlm_edge.runtime.ops.unmask import UNMASK
from dlm_edge.runtime.ops.unmask.compare import SELECTIONS
from dlm_edge.runtime.ops.unmask.contract import UnmaskSpec

BLOCK, V, STEPS = 9, 70, 5
MASK = V - 1
DRAWN = Sampling(temperature=0.9, top_k=30, repetition_penalty=1.2)


def masked_spec(index, selection):
    """Slots differ in seed, sample, heat and what is never sampled."""
    return UnmaskSpec(
        block=BLOCK, vocab_size=V, sampling=(DRAWN, Sampling())[index % 2], selection=selection,
        seed=2**40 + index // 2, sample_index=index, mask_token_id=MASK, eos_token_id=0,
        banned=(MASK - index, MASK), unmask_chance=1 / np.arange(6, 0, -1), sees_time=True,
    )  # fmt: skip


def moving_spec(index, graph):
    table = transition_table(make_schedule("loglinear"), graph, "tweedie", STEPS, V - 1)
    return TransitionSpec(
        block=BLOCK, vocab_size=V, sampling=Sampling(temperature=1.0), seed=7 + index // 2,
        sample_index=index, mask_token_id=MASK if graph == "absorb" else -1, eos_token_id=0,
        banned=(MASK,), transition=table,
    )  # fmt: skip


def logits_of(index, step):
    """What a model says of a slot: as much about it alone as beside others."""
    rng = np.random.default_rng((index, step))
    return (2 * rng.normal(size=(1, BLOCK + 2, V))).astype(np.float32)


def texts(form, specs, indices, upload=lambda array: array, *, begins):
    """Decodes some slots together, a slot from its step in `begins` on: the reports and ids.

    The logits of a slot's first step have two rows before the block's.
    """
    canvas = form.canvas([specs[index] for index in indices])
    found = {index: [] for index in indices}
    for step in range(4 * BLOCK):
        for slot, index in enumerate(indices):
            if begins[index] == step:
                spec = specs[index]
                ids = np.full(BLOCK, spec.mask_token_id, np.int32)
                if spec.mask_token_id < 0:
                    ids[:] = 5 + index
                ids[index] = 3
                form.begin_block(
                    canvas, ids, np.arange(BLOCK) != index,
                    position=11 * index, first=0, slot=slot, row=2,
                )  # fmt: skip
        parts = []
        for index in indices:
            own = logits_of(index, max(0, step - begins[index]))
            parts.append(own if step == begins[index] else np.roll(own, -2, axis=1))
        form.sample(upload(np.concatenate(parts)), canvas)
        for slot, (index, progress) in enumerate(
            zip(indices, form.commit(canvas, exact=True), strict=True)
        ):
            if step >= begins[index]:
                found[index].append((*progress, *form.ids(canvas, slot).tolist()))
    assert all(slot.num_masked == 0 for slot in canvas.slots)
    return {index: steps[: 3 * BLOCK] for index, steps in found.items()}


def same_alone_and_together(form, specs, upload=lambda array: array):
    begins = (0, 3, 1, 0)
    together = texts(form, specs, (0, 1, 2, 3), upload, begins=begins)
    other = texts(form, specs, (2, 0), upload, begins=begins)
    for index in range(4):
        alone = texts(form, specs, (index,), upload, begins=(0,) * 4)
        assert together[index] == alone[index]
        assert index in (1, 3) or other[index] == alone[index]
    return together


@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda one: f"{one.kind.name} {one.score}")
def test_a_masked_slot_is_the_same_alone_and_beside_any_others(cuda, selection):
    specs = [masked_spec(index, selection) for index in range(4)]
    host = same_alone_and_together(NumpyOps().bind(UNMASK), specs)
    upload = lambda array: on_device(cuda, array)  # noqa: E731
    assert same_alone_and_together(cuda.bind(UNMASK), specs, upload) == host


@pytest.mark.parametrize("graph", ["uniform", "absorb"])
def test_a_moving_slot_is_the_same_alone_and_beside_any_others(cuda, graph):
    specs = [moving_spec(index, graph) for index in range(4)]
    host = same_alone_and_together(NumpyOps().bind(TRANSITION), specs)
    upload = lambda array: on_device(cuda, array)  # noqa: E731
    assert same_alone_and_together(cuda.bind(TRANSITION), specs, upload) == host


def test_slots_with_settings_of_different_sizes_share_a_canvas(cuda):
    """One has chances and times, and one a bias; the other has neither."""
    plain = masked_spec(0, SELECTIONS[3])
    timed = UnmaskSpec(
        block=BLOCK, vocab_size=V, sampling=Sampling(temperature=1.0), selection=SELECTIONS[-1],
        seed=4, sample_index=0, mask_token_id=MASK, eos_token_id=0, banned=(MASK,), sees_time=True,
        unmask_chance=np.array([0.3, 0.6, 1.0]), times=np.array([1, 0.7, 0.3, 0], np.float32),
        bias=np.linspace(-1, 1, V, dtype=np.float32),
    )  # fmt: skip
    upload = lambda array: on_device(cuda, array)  # noqa: E731
    host = same_pair(NumpyOps().bind(UNMASK), [plain, timed])
    assert same_pair(cuda.bind(UNMASK), [plain, timed], upload) == host


def same_pair(form, specs, upload=lambda array: array):
    together = texts(form, specs, (0, 1), upload, begins=(0, 1))
    for index in range(2):
        assert texts(form, specs, (index,), upload, begins=(0, 0))[index] == together[index]
    return together


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_guidance_moves_logits_away_from_those_without_a_condition(cuda, dtype):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(4, 5, V)).astype(dtype)
    conditional, without = logits[:2].astype(np.float64), logits[2:].astype(np.float64)
    for scale in (0.0, 1.0, 3.0):
        expected = without + scale * (conditional - without)
        host = NumpyOps().bind(ROWS).guide(logits.copy(), scale)
        device = cuda.to_host(cuda.bind(ROWS).guide(on_device(cuda, logits), scale))
        for found in (host, device):
            assert found.shape == (2, 5, V)
            assert found.dtype == dtype
            assert np.allclose(found, expected, atol=1e-5 if dtype == np.float32 else 1e-2)
