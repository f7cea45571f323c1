"""Drafts by the kernels against NumpyOps: single steps, captured steps, the whole loop."""

import numpy as np
import pytest
from dlm_edge.runtime.errors import ConfigError, EngineError
from dlm_edge.runtime.families.table import load_model
from dlm_edge.runtime.generate import generate
from dlm_edge.runtime.gpu.replay import ReplayingDevice
from dlm_edge.runtime.ops.cuda.ops import CudaOps
from dlm_edge.runtime.ops.drafts import DRAFTS
from dlm_edge.runtime.ops.drafts.compare import DraftPair, random_steps
from dlm_edge.runtime.ops.drafts.contract import MAX_STOPS, DraftSpec
from dlm_edge.runtime.ops.host import NumpyOps
from dlm_edge.runtime.ops.rows.contract import Sampling
from draft_engines import DraftEngines, Model, draft_manifest, draft_request
from emulation.device import EmulatedDevice
from emulation.engines import DeviceEngines
from emulation.pairs import HEATS, MAX_TIE_SHARE, on_device
from rules import decoding


def settings(**fields):
    chosen = decoding(rule="draft_verify", **fields)
    return {"sampling": chosen.sampling, "beta": chosen.beta}


@pytest.mark.parametrize("heat", HEATS, ids=str)
@pytest.mark.parametrize("beta", [1.0, 0.6, 0.0])
def test_steps_are_those_of_numpy(cuda, heat, beta):
    made = tied = 0
    kept = set()
    for case, (block, vocab) in enumerate([(1, 5), (2, 63), (5, 65), (8, 200), (3, 517)]):
        dtype = (np.float32, np.float16)[case % 2]
        pair = DraftPair.make(cuda, **settings(beta=beta, **heat), block=block, vocab=vocab)
        for step in range(5):
            run, rows = (pair.step, block) if step and block > 1 else (pair.open, 1)
            noise = (0.0, 0.3, 1.0)[step % 3]
            decisions, ties, faults = run(random_steps(step, pair.host, rows, dtype, noise=noise))
            assert not faults
            made, tied = made + decisions, tied + ties
            kept.add(pair.host.memory.found.num_kept)
    assert len(kept) > 2
    assert tied <= max(1, MAX_TIE_SHARE * made)


def test_no_result_depends_on_the_order_of_threads():
    found = []
    for down in (False, True):
        ops = CudaOps(EmulatedDevice(downwards=down))
        for heat in HEATS:
            pair = DraftPair.make(ops, **settings(beta=0.8, **heat), block=4, vocab=300)
            pair.open(random_steps(1, pair.host, 1))
            pair.step(random_steps(2, pair.host, 4))
            form = pair.forms[0]
            found.append((form.verified(pair.device), form.draft_ids(pair.device)))
    half = len(HEATS)
    assert found[:half] == found[half:]


def test_a_full_cache_takes_what_it_has_room_for(cuda):
    pair = DraftPair.make(cuda, **settings(), block=5, vocab=90)
    pair.open(random_steps(1, pair.host, 1, noise=0.0))
    for form, drafts in zip(pair.forms, (pair.device, pair.host), strict=True):
        form.begin_drafts(drafts, start=38, position=7)
    assert pair.step(random_steps(1, pair.host, 5, noise=0.0))[2] == []
    assert pair.host.memory.found.num_kept == 5
    assert pair.caches[1][37].sum() == 0
    assert pair.caches[1][39].sum() != 0
    full = pair.caches[1].copy()  # and nothing where there is none
    assert pair.step(random_steps(2, pair.host, 5, noise=0.0))[2] == []
    assert np.array_equal(pair.caches[1], full)


def verify(ops, logits, drafts):
    form = ops.bind(DRAFTS)
    form.verify(ops.rows(logits, 0, drafts.block), drafts)
    return form.verified(drafts)


@pytest.mark.parametrize("heat", [{}, {"temperature": 1.0}], ids=str)
def test_a_row_that_is_not_finite_is_reported_if_it_is_reached(cuda, heat):
    for ops in (cuda, NumpyOps()):
        pair = DraftPair.make(cuda, **settings(**heat), block=4, vocab=90)
        pair.open(random_steps(1, pair.host, 1, noise=0.0))
        drafts = pair.device if ops is cuda else pair.host
        logits = random_steps(1, pair.host, 4, noise=0.0)
        logits[0, 1, 50] = np.nan  # behind draft 1, which is kept
        given = on_device(cuda, logits) if ops is cuda else logits
        with pytest.raises(EngineError, match="highest"):
            verify(ops, given, drafts)
        ops.bind(DRAFTS).begin_drafts(drafts, start=6, position=6)  # which forgets it
        logits[0, 1, 50] = 0.0
        assert verify(ops, on_device(cuda, logits) if ops is cuda else logits, drafts).num_kept > 0
    pair = DraftPair.make(cuda, **settings(**heat), block=4, vocab=90)
    pair.open(random_steps(1, pair.host, 1, noise=0.0))
    logits = random_steps(1, pair.host, 4, noise=0.0)
    logits[0, 0] = -30.0
    logits[0, 0, (pair.host.ids[0, 1] + 1) % 80] = 30.0  # draft 1 is rejected
    logits[0, 2] = np.nan
    assert pair.step(logits)[2] == []
    assert pair.host.memory.found.num_kept == 1


@pytest.mark.parametrize("heat", [{}, {"temperature": 1.0}], ids=str)
def test_a_masks_row_that_is_not_finite_is_reported_if_it_is_drafted_from(cuda, heat):
    for ops in (cuda, NumpyOps()):
        pair = DraftPair.make(cuda, **settings(**heat), block=4, vocab=90)
        pair.open(random_steps(1, pair.host, 1, noise=0.0))
        drafts = pair.device if ops is cuda else pair.host
        logits = random_steps(1, pair.host, 4, noise=0.0)
        kept = verify(ops, on_device(cuda, logits) if ops is cuda else logits, drafts).num_kept
        for place, fails in (((kept % 4) * 4 + 1, False), ((kept - 1) * 4 + 2, True)):
            masks = np.random.default_rng(0).normal(size=(1, 16, 90)).astype(np.float32)
            masks[0, place] = np.nan  # of another proposal first, then of the one that is read
            given = on_device(cuda, masks) if ops is cuda else masks
            if ops is not cuda and fails:
                with pytest.raises(EngineError, match="highest"):
                    ops.bind(DRAFTS).propose(given, drafts)
                continue
            ops.bind(DRAFTS).propose(given, drafts)
            given = on_device(cuda, logits) if ops is cuda else logits
            if fails:
                with pytest.raises(EngineError, match="highest"):
                    verify(ops, given, drafts)
            else:
                ops.bind(DRAFTS).verified(drafts)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rows_that_threads_read_in_several_turns_have_the_sums_of_numpy(cuda, temperature, dtype):
    """At a temperature and untruncated, so that sums come with the maximum, which changes."""
    pair = DraftPair.make(cuda, **settings(temperature=temperature), block=3, vocab=9001)
    kept = set()
    for step in range(4):
        run, rows = (pair.step, 3) if step else (pair.open, 1)
        assert run(random_steps(step, pair.host, rows, dtype, noise=0.3 * (step % 2)))[2] == []
        kept.add(pair.host.memory.found.num_kept)
    assert len(kept) > 1


@pytest.mark.parametrize("heat", [heat for heat in HEATS if heat.get("temperature")], ids=str)
def test_where_a_rejected_draft_leaves_nothing_the_row_itself_is_drawn_from(cuda, heat):
    """The same distribution on both sides, and a draft that neither would have drawn."""
    pair = DraftPair.make(cuda, **settings(**heat), block=3, vocab=90)
    pair.open(random_steps(1, pair.host, 1, noise=0.0))
    pair.host.ids[0, 1] = 88
    cuda.device.upload(pair.device.ids, pair.host.ids)
    assert pair.step(random_steps(1, pair.host, 3, noise=0.0))[1:] == (0, [])
    assert pair.host.memory.found.num_kept == 1


def test_what_a_rejected_draft_leaves_is_found_wherever_it_stands(cuda):
    """In the first turn of one thread alone."""
    pair = DraftPair.make(cuda, **settings(temperature=1.0), block=3, vocab=9001)
    pair.open(random_steps(1, pair.host, 1, noise=0.0))
    pair.host.ids[0, 1] = 8999
    cuda.device.upload(pair.device.ids, pair.host.ids)
    logits = random_steps(1, pair.host, 3, noise=0.0)
    logits[0, 0, 5] = 6.5  # a hundredth of the row, all of what is left
    assert pair.step(logits)[1:] == (0, [])
    assert pair.host.ids[0, 0] == 5


def test_more_stops_than_kernels_look_at_are_refused(cuda):
    with pytest.raises(ConfigError, match="end a text"):
        cuda.bind(DRAFTS).drafts(
            DraftSpec(
                block=2, vocab_size=90, sampling=Sampling(), seed=1, sample_index=0,
                mask_token_id=89, stops=tuple(range(MAX_STOPS + 1)), banned=(89,),
            )
        )  # fmt: skip


def test_steps_are_captured_once_and_replayed_whatever_they_keep():
    inner = EmulatedDevice()
    device = ReplayingDevice(inner)
    cuda = CudaOps(device)
    pair = DraftPair.make(cuda, **settings(temperature=1.0), block=3, vocab=120)
    pair.open(random_steps(1, pair.host, 1))
    drafts = pair.device
    logits = device.empty((1, 12, 120), np.float32)
    ids, start = device.empty((1, 12), np.int32), device.empty((1,), np.int32)
    rows = device.empty((12, 1, 6), np.float32)
    costs, kept = [], set()
    for step in range(7):
        source = on_device(cuda, random_steps(step, pair.host, 3, noise=(0.0, 2.0)[step % 2]))
        device.upload(logits, inner.view(source))  # in place of an engine's run
        before = dict(inner.counts)
        cuda.assign(ids, drafts.ids)
        cuda.assign(start, drafts.start)
        pair.forms[0].verify(cuda.rows(logits, 0, 3), drafts)
        pair.forms[0].append_kept(pair.caches[0], rows, drafts)
        pair.forms[0].propose(cuda.rows(logits, 3, 9), drafts)
        kept.add(pair.forms[0].verified(drafts).num_kept)
        costs.append({name: inner.counts[name] - before[name] for name in before})
    assert device.num_captured == 1
    assert len(kept) > 1
    for cost in costs[2:]:
        assert (cost["replays"], cost["launches"], cost["copies"]) == (1, 4, 2)
        assert not any(cost[name] for name in ("allocations", "uploads", "downloads", "captures"))


def results(device, asked, *, block=3, split=False, contexts=(16, 96), **fields):
    found = []
    for on_gpu in (False, True):
        model = Model(41, seed=3, agreement=2.0)
        engines = DraftEngines(model, [block], contexts, split=split)
        manifest = draft_manifest(engines, **fields)
        ops = CudaOps(device) if on_gpu else NumpyOps()
        used = DeviceEngines(engines, device) if on_gpu else engines
        found.append((generate(load_model(manifest, used, ops), asked), engines.runs))
    return found


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("heat", [{}, {"temperature": 0.8, "top_k": 9, "top_p": 0.9}], ids=str)
def test_the_loop_gives_the_tokens_of_the_loop_in_numpy(device, split, beta, heat):
    for prompt, max_tokens in (((0, 3, 1), 20), (tuple(range(30)), 40)):
        asked = draft_request(beta=beta, prompt_ids=prompt, max_tokens=max_tokens, **heat)
        (host, told), (found, also) = results(device, asked, split=split)
        assert (found.token_ids, found.finish_reason) == (host.token_ids, host.finish_reason)
        assert found.nfe == host.nfe
        assert also == told


def test_the_loop_slides_alike(device):
    asked = draft_request(prompt_ids=tuple(range(36)), max_tokens=30)
    (host, told), (found, also) = results(device, asked, contexts=(16, 32))
    assert host.approximate
    assert (found.token_ids, also) == (host.token_ids, told)


def test_work_that_the_device_does_later_changes_nothing():
    asked = draft_request(temperature=0.9, max_tokens=25)
    device = ReplayingDevice(EmulatedDevice(asynchronous=True))
    (host, told), (found, also) = results(device, asked)
    assert (found.token_ids, also) == (host.token_ids, told)
    assert device.num_replayed > 1
