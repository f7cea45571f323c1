"""Texts of a batch: each is what it is alone, beside any others, in NumPy and on the device."""

import numpy as np
import pytest
from dlm_edge.runtime.gpu.replay import ReplayingDevice
from dlm_edge.runtime.noise.schedule import make_schedule
from dlm_edge.runtime.noise.transition import transition_table
from dlm_edge.runtime.ops.cuda.ops import CudaOps
from dlm_edge.runtime.ops.drafts import DRAFTS
from dlm_edge.runtime.ops.drafts.compare import random_steps
from dlm_edge.runtime.ops.drafts.contract import DraftSpec
from dlm_edge.runtime.ops.host import NumpyOps
from dlm_edge.runtime.ops.rows import ROWS
from dlm_edge.runtime.ops.rows.compare import on_device
from dlm_edge.runtime.ops.rows.contract import Sampling
from dlm_edge.runtime.ops.transition import TRANSITION
from dlm_edge.runtime.ops.transition.contract import TransitionSpec
from dlm_edge.runtime.ops.unmask import UNMASK
from dlm_edge.runtime.ops.unmask.compare import SELECTIONS
from dlm_edge.runtime.ops.unmask.contract import UnmaskSpec
from emulation.device import EmulatedDevice

BLOCK, V, STEPS = 9, 70, 5
MASK = V - 1
DRAWN = Sampling(temperature=0.9, top_k=30, repetition_penalty=1.2)


def masked_spec(index, selection):
    """Texts differ in seed, sample, heat and what is never sampled."""
    return UnmaskSpec(
        block=BLOCK, vocab_size=V, sampling=(DRAWN, Sampling())[index % 2], selection=selection,
        seed=2**40 + index // 2, sample_index=index, mask_token_id=MASK, end_ids=(0,),
        banned=(MASK - index, MASK), unmask_chance=1 / np.arange(6, 0, -1), sees_time=True,
    )  # fmt: skip


def moving_spec(index, graph):
    table = transition_table(make_schedule("loglinear"), graph, "tweedie", STEPS, V - 1)
    return TransitionSpec(
        block=BLOCK, vocab_size=V, sampling=Sampling(temperature=1.0), seed=7 + index // 2,
        sample_index=index, mask_token_id=MASK if graph == "absorb" else -1, end_ids=(0,),
        banned=(MASK,), transition=table,
    )  # fmt: skip


def logits_of(index, step):
    """What a model says of a text: as much about it alone as beside others."""
    rng = np.random.default_rng((index, step))
    return (2 * rng.normal(size=(1, BLOCK + 2, V))).astype(np.float32)


def texts(ops, primitive, specs, indices, upload=lambda array: array, *, begins):
    """Decodes some texts together, each from its step in `begins` on: the reports and ids.

    Their logits are slots of one run's; those of a text's first step have two rows before the
    block's.
    """
    form = ops.bind(primitive)
    canvases = {index: form.canvas(specs[index]) for index in indices}
    found = {index: [] for index in indices}
    for step in range(4 * BLOCK):
        taking = [index for index in indices if begins[index] <= step]
        run = np.concatenate([logits_of(index, max(0, step - begins[index])) for index in indices])
        given = upload(run)
        with ops.together():
            for index in taking:
                canvas, spec, row = canvases[index], specs[index], 0
                if begins[index] == step:
                    ids = np.full(BLOCK, spec.mask_token_id, np.int32)
                    if spec.mask_token_id < 0:
                        ids[:] = 5 + index
                    ids[index] = 3
                    free = np.arange(BLOCK) != index
                    form.begin_block(canvas, ids, free, position=11 * index, first=0)
                    row = 2
                own = ops.slot(given, indices.index(index))
                form.sample(ops.rows(own, row, BLOCK), canvas)
                form.commit(canvas)
        for index in taking:
            progress = form.progress(canvases[index], exact=True)
            found[index].append((*progress, *form.ids(canvases[index]).tolist()))
    assert all(canvas.place.num_masked == 0 for canvas in canvases.values())
    return {index: steps[: 3 * BLOCK] for index, steps in found.items()}


def same_alone_and_together(ops, primitive, specs, upload=lambda array: array):
    begins = (0, 3, 1, 0)
    together = texts(ops, primitive, specs, (0, 1, 2, 3), upload, begins=begins)
    other = texts(ops, primitive, specs, (2, 0), upload, begins=begins)
    for index in range(4):
        alone = texts(ops, primitive, specs, (index,), upload, begins=(0,) * 4)
        assert together[index] == alone[index]
        assert index in (1, 3) or other[index] == alone[index]
    return together


@pytest.mark.parametrize("selection", SELECTIONS, ids=lambda one: f"{one.kind.name} {one.score}")
def test_a_masked_text_is_the_same_alone_and_beside_any_others(cuda, selection):
    specs = [masked_spec(index, selection) for index in range(4)]
    host = same_alone_and_together(NumpyOps(), UNMASK, specs)
    upload = lambda array: on_device(cuda, array)  # noqa: E731
    assert same_alone_and_together(cuda, UNMASK, specs, upload) == host


@pytest.mark.parametrize("graph", ["uniform", "absorb"])
def test_a_moving_text_is_the_same_alone_and_beside_any_others(cuda, graph):
    specs = [moving_spec(index, graph) for index in range(4)]
    host = same_alone_and_together(NumpyOps(), TRANSITION, specs)
    upload = lambda array: on_device(cuda, array)  # noqa: E731
    assert same_alone_and_together(cuda, TRANSITION, specs, upload) == host


def drafting_spec(index):
    """Texts differ in seed, sample, heat and what ends them."""
    sampling = (Sampling(temperature=0.9, top_k=30), Sampling())[index % 2]
    return DraftSpec(
        block=4, vocab_size=V, sampling=sampling,
        seed=2**40 + index // 2, sample_index=index, mask_token_id=MASK, stops=(0, index),
        banned=(MASK,), beta=(1.0, 0.6)[index // 2 % 2],
    )  # fmt: skip


def drafting_texts(ops, indices, upload=lambda array: array):
    """Verifies and drafts for some texts together: what is found of each, its drafts and cache."""
    form = ops.bind(DRAFTS)
    texts = {index: form.drafts(drafting_spec(index)) for index in indices}
    for index, drafts in texts.items():  # behind prompts of different lengths
        form.begin_drafts(drafts, start=index, position=index)
    found, positions = {index: [] for index in indices}, {index: index for index in indices}
    cache = upload(np.zeros((60, len(indices), 3), np.float32))
    for step in range(6):
        count, num_masks, stride = (4, 16, 4) if step else (1, 4, 1)
        runs = np.zeros((len(indices), 23, V), np.float32)
        rows = np.random.default_rng(step).normal(size=(20, 1, 3)) * np.ones((1, len(indices), 1))
        for run, (index, drafts) in zip(runs, texts.items(), strict=True):
            own = random_steps(step, drafts, count, noise=0.7 * (step % 2))[0]
            begin = 0 if step else index
            run[begin : begin + len(own)] = own
        logits, kv_new = upload(runs), upload(rows.astype(np.float32))
        with ops.together():
            for slot, (index, drafts) in enumerate(texts.items()):
                begin, own = 0 if step else index, ops.slot(logits, slot)
                masks = ops.rows(own, begin + count, num_masks)
                form.verify(ops.rows(own, begin, count), drafts, first=masks, stride=stride)
                places = (ops.slot(array, slot, axis=1) for array in (cache, kv_new))
                form.append_kept(*places, drafts)
                form.propose(masks, drafts)
        for index, drafts in texts.items():
            verified = form.verified(drafts)
            positions[index] += verified.num_kept
            drafts.position = positions[index]  # which a device keeps to itself
            found[index].append((verified, form.draft_ids(drafts)))
    kept = np.array(ops.to_host(cache))
    for slot, index in enumerate(indices):
        found[index].append(kept[:, slot].tolist())
    return found


def test_drafts_of_a_text_are_the_same_alone_and_beside_any_others(cuda):
    alone = {index: drafting_texts(NumpyOps(), (index,))[index] for index in range(4)}
    assert max(step[0].num_kept for step in alone[1][:-1]) > 1
    upload = lambda array: on_device(cuda, array)  # noqa: E731
    for ops, given in ((NumpyOps(), lambda array: array), (cuda, upload)):
        assert drafting_texts(ops, (0, 1, 2, 3), given) == alone
        assert drafting_texts(ops, (2, 0), given) == {index: alone[index] for index in (0, 2)}


def a_steps_costs(device, form_of, count):
    """What the device is asked for in each step of so many texts."""
    step = form_of(device, count)
    found = []
    for _ in range(8):
        before = dict(device.inner.counts)
        step()
        found.append({name: n - before[name] for name, n in device.inner.counts.items()})
    return found


def masked_steps(device, count):
    cuda = CudaOps(device, run_ahead=False)
    form = cuda.bind(UNMASK)
    specs = [masked_spec(index, SELECTIONS[0]) for index in range(count)]
    canvases = [form.canvas(spec) for spec in specs]
    ids, masked = np.full(BLOCK, MASK, np.int32), np.ones(BLOCK, bool)
    for canvas in canvases:
        form.begin_block(canvas, ids, masked, position=0, first=0)
    logits = on_device(cuda, np.concatenate([logits_of(i, 0)[:, :BLOCK] for i in range(count)]))

    def step():
        with cuda.together():
            for slot, canvas in enumerate(canvases):
                form.sample(cuda.slot(logits, slot), canvas)
                form.commit(canvas)
        for canvas in canvases:
            form.progress(canvas)

    return step


def drafting_steps(device, count):
    cuda = CudaOps(device)
    form = cuda.bind(DRAFTS)
    texts = [form.drafts(drafting_spec(0)) for _ in range(count)]
    for drafts in texts:
        form.begin_drafts(drafts, start=0, position=0)
        form.propose(on_device(cuda, logits_of(0, 0)[:, :4]), drafts)
    logits = on_device(cuda, np.concatenate([np.tile(logits_of(0, 0), (1, 2, 1))] * count))
    cache, rows = (on_device(cuda, np.zeros((99, count, 3), np.float32)) for _ in range(2))

    def step():
        with cuda.together():
            for slot, drafts in enumerate(texts):
                own = cuda.slot(logits, slot)
                form.verify(cuda.rows(own, 0, 4), drafts)
                form.append_kept(
                    cuda.slot(cache, slot, axis=1), cuda.slot(rows, slot, axis=1), drafts
                )
                form.propose(cuda.rows(own, 4, 16), drafts)
        for drafts in texts:
            form.verified(drafts)

    return step


@pytest.mark.parametrize(
    ("form_of", "launches"), [(masked_steps, 2), (drafting_steps, 4)], ids=["unmask", "drafts"]
)
def test_launches_of_a_step_do_not_grow_with_the_batch(form_of, launches):
    for count in (1, 2, 5):
        device = ReplayingDevice(EmulatedDevice())
        costs = a_steps_costs(device, form_of, count)
        assert all(cost["launches"] == launches for cost in costs)
        for cost in costs[3:]:
            assert cost["replays"] == 1
            assert not any(cost[name] for name in ("allocations", "uploads", "captures"))


def test_texts_at_different_points_of_a_step_join_as_soon_as_they_can():
    device = EmulatedDevice()
    cuda = CudaOps(device, run_ahead=False)
    form = cuda.bind(UNMASK)
    canvases = [form.canvas(masked_spec(index, SELECTIONS[0])) for index in range(3)]
    ids, masked = np.full(BLOCK, MASK, np.int32), np.ones(BLOCK, bool)
    begin = lambda canvas: form.begin_block(canvas, ids, masked, position=0, first=0)  # noqa: E731
    begin(canvases[0])
    logits = on_device(cuda, logits_of(0, 0)[:, :BLOCK])
    before = device.counts["launches"]
    with cuda.together():
        for canvas in canvases:
            if canvas is not canvases[0]:
                begin(canvas)
            form.sample(logits, canvas)
            form.commit(canvas)
    assert device.counts["launches"] - before == 3  # begin, sample, commit


def test_texts_with_settings_of_different_sizes_share_launches(cuda):
    """One has chances and times, and one a bias; the other has neither."""
    plain = masked_spec(0, SELECTIONS[3])
    timed = UnmaskSpec(
        block=BLOCK, vocab_size=V, sampling=Sampling(temperature=1.0), selection=SELECTIONS[-1],
        seed=4, sample_index=0, mask_token_id=MASK, end_ids=(0,), banned=(MASK,), sees_time=True,
        unmask_chance=np.array([0.3, 0.6, 1.0]), times=np.array([1, 0.7, 0.3, 0], np.float32),
        bias=np.linspace(-1, 1, V, dtype=np.float32),
    )  # fmt: skip
    upload = lambda array: on_device(cuda, array)  # noqa: E731
    host = same_pair(NumpyOps(), [plain, timed])
    assert same_pair(cuda, [plain, timed], upload) == host


def same_pair(ops, specs, upload=lambda array: array):
    together = texts(ops, UNMASK, specs, (0, 1), upload, begins=(0, 1))
    for index in range(2):
        assert texts(ops, UNMASK, specs, (index,), upload, begins=(0, 0))[index] == together[index]
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
