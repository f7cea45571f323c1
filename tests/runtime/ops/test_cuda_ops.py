"""Commits of the kernels against NumpyOps, failures, and what a step costs."""

import time

import numpy as np
import pytest
from dlm_edge.runtime.errors import ConfigError, EngineError
from dlm_edge.runtime.families.table import RULES, rules_of
from dlm_edge.runtime.gpu.replay import ReplayingDevice
from dlm_edge.runtime.ops.cuda.ops import CudaOps
from dlm_edge.runtime.ops.unmask.contract import Score
from emulation.device import EmulatedDevice
from emulation.pairs import HEATS, commit, compare_samples, make_pair, on_device, random_logits
from rules import decoding


@pytest.mark.parametrize("rule", [*(rule.name for rule in rules_of("mdlm")), "next_token"])
@pytest.mark.parametrize("block", [1, 7, 40])
def test_commits_of_the_same_scores_are_equal(cuda, rule, block):
    """Every rule over every step of a block, with equal scores among them, text ends included."""
    if rule == "next_token":
        block = 1
    for seed in range(4):
        rng = np.random.default_rng(seed)
        steps = {"steps": int(rng.integers(1, 9))} if "steps" in RULES[rule].options() else {}
        pair = make_pair(decoding(rule=rule, **steps), block=block, vocab=90, cuda=cuda)
        pair.begin(
            [(index, 0) for index in range(1, block) if rng.random() < 0.1],
            first=int(rng.integers(0, block)),
        )
        device, host = pair.canvases
        for _ in range(2 * block + 10):
            scores = np.round(rng.random(block), 1).astype(np.float32)
            scores = -scores if pair.host.spec.selection.score is Score.ENTROPY else scores
            tokens = rng.integers(0, 12, size=block).astype(np.int32)
            host.score[:], host.candidate[:] = scores, tokens
            for name in ("score", "candidate"):
                cuda.device.upload(getattr(device, name), getattr(host, name))
            if pair.host.spec.selection.chooses_first:
                pair.host.choose()
                cuda.device.upload(device.chosen, host.chosen)
            progress = commit(pair.forms[1], host)
            assert commit(pair.forms[0], device) == progress
            assert np.array_equal(pair.forms[0].ids(device), host.ids[0])
            assert np.array_equal(pair.forms[0].masked(device), host.masked[0])
            state = cuda.device.download(device.memory.state)[0]
            assert (state["step"], state["num_masked"]) == (pair.host.step, pair.host.num_masked)
            assert state["time"] == pytest.approx(pair.host.time, rel=1e-5)
        assert pair.host.num_masked == 0


def test_the_bounds_of_rules_hold_exactly_at_their_edge(cuda):
    for rule, option, scores in (
        ("threshold", {"threshold": 0.5}, [0.4, 0.5, 0.6, 0.5]),
        ("factor", {"factor": 1.0}, [0.5, 2 / 3, 0.9, 0.75]),
        ("factor", {"factor": 1.0}, [0.5, 0.9, 0.75, 0.8]),
        ("entropy_bound", {"entropy_bound": 0.75}, [-0.25, -0.5, -0.25, -1.0]),
        ("entropy_bound", {"entropy_bound": 0.5}, [-0.25, -0.5, -0.25, -1.0]),
        ("entropy_bound", {"entropy_bound": 0.0}, [-0.25, -0.0, -0.0, -1.0]),
    ):
        pair = make_pair(decoding(rule=rule, **option), block=4, vocab=70, cuda=cuda)
        pair.begin()
        device, host = pair.canvases
        host.score[:] = scores
        host.candidate[:] = 5
        for name in ("score", "candidate"):
            cuda.device.upload(getattr(device, name), getattr(host, name))
        assert commit(pair.forms[0], device) == commit(pair.forms[1], host)
        assert np.array_equal(pair.forms[0].ids(device), host.ids[0])


@pytest.mark.parametrize("block", [2, 33, 70, 800])
def test_scores_of_any_kind_are_ranked_and_added_up_as_numpy_does(cuda, block):
    """More than one warp of positions, and more positions than threads; tiny entropies, too."""
    rng = np.random.default_rng(block)
    counts = set()
    for rule, option, powers in (
        ("entropy_bound", {"entropy_bound": 1e-5}, 7),
        ("entropy_bound", {"entropy_bound": 0.4}, 1),
        ("entropy_bound", {"entropy_bound": block / 3}, 1),
        ("factor", {"factor": 0.5}, 0.05),
        ("threshold", {"threshold": 0.9}, 0.1),
        ("low_confidence", {"steps": 3}, 1),
    ):
        pair = make_pair(decoding(rule=rule, **option), block=block, vocab=70, cuda=cuda)
        pair.begin([(index, 3) for index in range(1, block) if rng.random() < 0.3])
        device, host = pair.canvases
        scores = (10.0 ** -(powers * rng.random(block))).astype(np.float32)
        host.score[:] = -scores if rule == "entropy_bound" else scores
        host.candidate[:] = 5
        for name in ("score", "candidate"):
            cuda.device.upload(getattr(device, name), getattr(host, name))
        progress = commit(pair.forms[0], device)
        assert progress == commit(pair.forms[1], host)
        assert np.array_equal(pair.forms[0].ids(device), host.ids[0])
        counts.add(progress.num_committed)
    assert len(counts) > 1 + (block > 2)


@pytest.mark.parametrize("times", [None, [0.9, 0.5, 0.2, 0.1]], ids=["counted", "timed"])
def test_the_next_run_is_told_what_numpy_tells_it(cuda, times):
    settings = decoding(rule="low_confidence", steps=5)
    given = None if times is None else np.array(times, np.float32)
    pair = make_pair(settings, block=7, vocab=90, cuda=cuda, sees_time=True, times=given)
    device, host = pair.canvases
    ids = np.array([89, 89, 7, 89, 89, 89, 89], np.int32)
    masked = np.array([True, True, False, True, True, False, True])  # one mask is never filled
    pair.begin_ids(ids, masked, position=17, first=0)
    told = [host.time_input[0, 0]]
    assert np.array_equal(cuda.to_host(device.time_input), host.time_input)
    while pair.host.num_masked:
        pair.sample(random_logits(1, 7, 90))
        assert commit(pair.forms[0], device) == commit(pair.forms[1], host)
        assert np.array_equal(cuda.to_host(device.time_input), host.time_input)
        told.append(host.time_input[0, 0])
    assert len(set(told)) > 3
    assert told[-1] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [3, 70, 199])
def test_a_row_that_is_not_finite_fails_at_the_commit(cuda, value, place):
    pair = make_pair(decoding(), block=5, vocab=202, cuda=cuda)
    pair.begin()
    logits = random_logits(1, 5, 202)
    logits[0, 2, place] = value
    before = pair.forms[0].ids(pair.canvases[0])
    pair.forms[0].sample(on_device(cuda, logits), pair.canvases[0])
    with pytest.raises(EngineError, match="no finite highest value"):
        commit(pair.forms[0], pair.canvases[0])
    assert np.array_equal(pair.forms[0].ids(pair.canvases[0]), before)
    with pytest.raises(EngineError):
        pair.forms[1].sample(logits, pair.canvases[1])


def test_a_row_of_nothing_but_minus_infinity_fails_and_a_masked_one_is_all_it_takes(cuda):
    pair = make_pair(decoding(), block=5, vocab=202, cuda=cuda)
    logits = random_logits(1, 5, 202)
    logits[0, 2] = -np.inf
    pair.begin([(2, 9)])
    pair.sample(logits)  # row 2 is not read
    assert compare_samples(pair) == (4, 0)
    assert commit(pair.forms[0], pair.canvases[0]) == commit(pair.forms[1], pair.canvases[1])
    pair.begin()
    pair.forms[0].sample(on_device(cuda, logits), pair.canvases[0])
    with pytest.raises(EngineError):
        commit(pair.forms[0], pair.canvases[0])


def test_a_step_over_a_finished_block_changes_nothing(cuda):
    pair = make_pair(decoding(rule="threshold", threshold=0.001), block=6, vocab=90,
                     cuda=cuda)  # fmt: skip
    pair.begin()
    canvas = pair.canvases[0]
    logits = on_device(cuda, random_logits(1, 6, 90, scale=0.1))
    while canvas.place.num_masked:
        pair.forms[0].sample(logits, canvas)
        last = commit(pair.forms[0], canvas)
    before = pair.forms[0].ids(canvas)
    pair.forms[0].sample(logits, canvas)
    again = commit(pair.forms[0], canvas)
    assert again == last._replace(num_committed=0)
    assert np.array_equal(pair.forms[0].ids(canvas), before)


def test_no_result_depends_on_the_order_of_threads():
    """A missing barrier would show: fibers run upwards here, downwards there."""
    both = [CudaOps(EmulatedDevice(downwards=down), run_ahead=False) for down in (False, True)]
    for rule, heat in (("factor", HEATS[4]), ("entropy_bound", HEATS[1]), ("random", HEATS[3])):
        found = []
        for ops in both:
            settings = decoding(rule=rule, repetition_penalty=1.2, **heat)
            pair = make_pair(settings, block=40, vocab=700, cuda=ops)
            pair.begin([(3, 5)])
            pair.forms[0].sample(
                on_device(ops, np.round(random_logits(2, 40, 700))), pair.canvases[0]
            )
            progress = commit(pair.forms[0], pair.canvases[0])
            arrays = ("ids", "masked", "candidate", "log_prob", "score", "seen")
            found.append((progress, [pair.both(name)[0] for name in arrays]))
        assert found[0][0] == found[1][0]
        written = np.flatnonzero(found[0][1][1] | (found[0][1][0] != 699))
        for one, other in zip(found[0][1], found[1][1], strict=True):
            assert np.array_equal(one, other)
        assert len(written)


def test_appended_rows_lie_behind_the_cached_ones(cuda):
    for width, dtype in ((8, np.float32), (3, np.float16), (5, np.float32)):
        kv = on_device(cuda, np.zeros((10, 1, width), dtype))
        new = np.arange(4 * width).reshape(4, 1, width).astype(dtype)
        cuda.append_kv(kv, on_device(cuda, new), 5, 3)
        expected = np.zeros((10, 1, width), dtype)
        expected[5:8] = new[:3]
        assert np.array_equal(cuda.to_host(kv), expected)


def test_rows_of_a_slot_go_to_its_own_of_a_batch(cuda):
    kv, new = np.zeros((10, 3, 5), np.float32), np.random.default_rng(0).normal(size=(4, 3, 5))
    device, given = on_device(cuda, kv), on_device(cuda, new.astype(np.float32))
    for slot, start in ((2, 5), (0, 1)):
        cuda.append_kv(cuda.slot(device, slot, axis=1), cuda.slot(given, slot, axis=1), start, 3)
        kv[start : start + 3, slot] = new[:3, slot]
    assert np.array_equal(cuda.to_host(device), kv)


def test_a_run_whose_rows_are_appended_is_a_captured_one():
    """Though the rows go to another place each time, which is another step."""
    device = ReplayingDevice(EmulatedDevice())
    cuda = CudaOps(device)
    kv, new = (on_device(cuda, np.zeros((size, 1, 4), np.float32)) for size in (40, 4))
    runs = []
    for turn in range(5):
        device.submit("engine", lambda: device.inner.enqueue(lambda: runs.append(1)))
        cuda.append_kv(kv, new, 4 * turn, 4)
        device.flush()  # as what uploads the next ids does
    device.synchronize()
    assert len(runs) == 5
    assert (device.num_captured, device.num_replayed) == (1, 4)


def test_a_step_launches_twice_allocates_nothing_and_copies_no_logits():
    device = EmulatedDevice()
    cuda = CudaOps(device, run_ahead=False)
    pair = make_pair(decoding(temperature=1.0), block=12, vocab=300, cuda=cuda)
    pair.begin()
    logits = on_device(cuda, random_logits(1, 12, 300))
    before = dict(device.counts)
    for _ in range(4):
        pair.forms[0].sample(logits, pair.canvases[0])
        commit(pair.forms[0], pair.canvases[0])
    changed = {name: n - before[name] for name, n in device.counts.items() if n != before[name]}
    assert changed == {"launches": 8}


def test_the_ids_of_a_finished_block_cost_no_copy_and_no_wait():
    device = EmulatedDevice()
    cuda = CudaOps(device)
    pair = make_pair(decoding(rule="low_confidence"), block=6, vocab=90, cuda=cuda)
    pair.begin([(2, 7)])
    canvas, host = pair.canvases
    logits = random_logits(1, 6, 90)
    on_gpu = on_device(cuda, logits)
    while pair.host.num_masked:
        pair.forms[1].sample(logits, host)
        commit(pair.forms[1], host)
    while canvas.place.num_masked:
        pair.forms[0].sample(on_gpu, canvas)
        commit(pair.forms[0], canvas)
    before = dict(device.counts)
    assert np.array_equal(pair.forms[0].ids(canvas), host.ids[0])
    assert device.counts == before
    pair.begin([(2, 8)])  # and those of one that has only begun are fetched
    assert pair.forms[0].ids(canvas).tolist() == [89, 89, 8, 89, 89, 89]


def test_the_ids_of_a_finished_block_are_the_callers_own():
    cuda = CudaOps(EmulatedDevice(), run_ahead=False)
    pair = make_pair(decoding(rule="low_confidence"), block=6, vocab=90, cuda=cuda)
    canvas, found = pair.canvases[0], []
    for position in (0, 6):
        pair.begin(position=position)
        logits = on_device(cuda, random_logits(position, 6, 90))
        while canvas.place.num_masked:
            pair.forms[0].sample(logits, canvas)
            commit(pair.forms[0], canvas)
        found.append((pair.forms[0].ids(canvas), pair.forms[0].ids(canvas).copy()))
    assert not np.array_equal(found[0][0], found[1][0])
    assert np.array_equal(*found[0])


def test_a_text_left_in_the_middle_of_a_step_leaves_nothing_to_the_next_one():
    """Its last step may still run, and report, when its memory is lent again."""
    cuda = CudaOps(EmulatedDevice(asynchronous=True), run_ahead=False)
    settings = decoding(rule="low_confidence", steps=6)
    left = make_pair(settings, block=6, vocab=90, cuda=cuda)
    left.begin()
    pointer = left.canvases[0].ids.pointer
    left.forms[0].sample(on_device(cuda, random_logits(1, 6, 90)), left.canvases[0])
    cuda.device.enqueue(lambda: time.sleep(0.2))
    left.forms[0].launch_commit(left.canvases[0])
    del left
    pair = make_pair(settings, block=6, vocab=90, cuda=cuda)
    assert pair.canvases[0].ids.pointer == pointer
    pair.begin([(1, 4), (3, 4), (5, 4)])
    logits = random_logits(2, 6, 90)
    on_gpu = on_device(cuda, logits)
    while pair.host.num_masked:
        pair.forms[0].sample(on_gpu, pair.canvases[0])
        pair.forms[1].sample(logits, pair.canvases[1])
        assert commit(pair.forms[0], pair.canvases[0]) == commit(pair.forms[1], pair.canvases[1])
    assert np.array_equal(pair.forms[0].ids(pair.canvases[0]), pair.canvases[1].ids[0])


def test_the_memory_of_a_canvas_serves_the_next_one_of_its_shape():
    device = EmulatedDevice()
    cuda = CudaOps(device)
    kept = make_pair(decoding(), block=6, vocab=90, cuda=cuda)
    pointers = {kept.canvases[0].ids.pointer}
    before = device.counts["allocations"]
    for rule in ("factor", "low_confidence", "entropy"):
        pair = make_pair(decoding(rule=rule, temperature=1.0), block=6, vocab=90, cuda=cuda)
        for position in (17, 23):
            pair.begin([(1, 4)], position=position)
            while pair.host.num_masked:
                pair.sample(random_logits(position, 6, 90))
                assert compare_samples(pair)[1] == 0
                reports = pair.commit()
                assert reports[0] == reports[1]
        pointers.add(pair.canvases[0].ids.pointer)
        del pair
    assert len(pointers) == 2
    per_canvas = (before - 0) and device.counts["allocations"] - before
    logits_uploaded = per_canvas - 14
    assert logits_uploaded > 0  # only the test's own logits beside one more canvas
    other = make_pair(decoding(), block=7, vocab=90, cuda=cuda)
    assert other.canvases[0].ids.pointer not in pointers


def test_running_ahead_reports_the_step_before(cuda, device):
    ahead = CudaOps(device)
    settings = decoding(rule="low_confidence")
    now, late = (make_pair(settings, block=5, vocab=90, cuda=ops) for ops in (cuda, ahead))
    now.begin()
    late.begin()
    logits = on_device(cuda, random_logits(1, 5, 90))
    reports = []
    for pair in (now, late):
        reports.append([])
        for _ in range(6):
            pair.forms[0].sample(logits, pair.canvases[0])
            reports[-1].append(commit(pair.forms[0], pair.canvases[0]))
    now_, late_ = reports
    assert late_[0].num_masked == 5
    assert [r._replace(behind=False) for r in late_[1:]] == now_[:-1]
    assert all(report.behind for report in late_)


def test_running_ahead_still_reports_a_row_that_is_not_finite(device):
    ahead = CudaOps(device)
    pair = make_pair(decoding(), block=5, vocab=90, cuda=ahead)
    pair.begin()
    logits = on_device(ahead, np.full((1, 5, 90), np.nan, np.float32))
    pair.forms[0].sample(logits, pair.canvases[0])
    commit(pair.forms[0], pair.canvases[0])
    pair.forms[0].sample(logits, pair.canvases[0])
    with pytest.raises(EngineError, match="no finite highest value"):
        commit(pair.forms[0], pair.canvases[0])
    pair.begin()  # a new block starts clean
    pair.forms[0].sample(on_device(ahead, random_logits(1, 5, 90)), pair.canvases[0])
    commit(pair.forms[0], pair.canvases[0])
    pair.forms[0].sample(on_device(ahead, random_logits(2, 5, 90)), pair.canvases[0])
    assert commit(pair.forms[0], pair.canvases[0]).num_committed > 0


def test_a_block_too_long_to_be_counted_is_refused(cuda):
    with pytest.raises(ConfigError, match="32767"):
        make_pair(decoding(), block=40000, vocab=8, cuda=cuda)


def test_a_vocabulary_too_large_for_the_bins_is_refused(cuda):
    with pytest.raises(ConfigError, match="262144 ids at most on a GPU, not 262145"):
        make_pair(decoding(), block=2, vocab=2**18 + 1, cuda=cuda)
