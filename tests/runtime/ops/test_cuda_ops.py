"""The kernels, run on the CPU by the emulation, against NumpyOps.

Draws are bit-equal. Tokens are equal except where the uniform lies within 1e-5 of a boundary of the
distribution function; those are counted, and their share is bounded.
"""

from dataclasses import dataclass

import numpy as np
import pytest
from dlm_edge.runtime.decoding import RULES, DecodingSettings
from dlm_edge.runtime.errors import ConfigError, EngineError
from dlm_edge.runtime.ops.cuda_ops import KERNELS, CudaOps
from dlm_edge.runtime.ops.numpy_ops import NumpyOps
from dlm_edge.runtime.philox import DrawKind, uniforms
from emulation.device import EmulatedDevice
from emulation.probes import NAMES, copy_kernels, probe_source

MAX_TIE_SHARE = 0.002
BLOCK_RULES = [name for name in RULES if name != "next_token"]
HEATS = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 1.0, "top_k": 20, "top_p": 0.5},
    {"temperature": 30.0, "top_k": 1000, "top_p": 0.999},
    {"temperature": 0.01, "top_p": 0.3},
]


@dataclass
class Pair:
    """One canvas on each backend, in the same state."""

    cuda: CudaOps
    canvases: tuple

    @classmethod
    def make(cls, settings, *, block, vocab, cuda=None, seed=2**40 + 5, **fields):
        cuda = cuda or CudaOps(EmulatedDevice(), run_ahead=False)
        canvases = tuple(
            ops.canvas(
                block=block, vocab_size=vocab, settings=settings, seed=seed, sample_index=3,
                mask_token_id=vocab - 1, eos_token_id=0, banned=(vocab - 2, vocab - 1),
                **{"unmask_chance": 1 / np.arange(6, 0, -1), **fields},
            )
            for ops in (cuda, NumpyOps())
        )  # fmt: skip
        return cls(cuda, canvases)

    def begin(self, fixed=(), *, position=17, first=0):
        device, host = self.canvases
        ids = np.full(host.ids.shape[1], host.mask_token_id, np.int32)
        for index, token in fixed:
            ids[index] = token
        for ops, canvas in ((self.cuda, device), (NumpyOps(), host)):
            ops.begin_block(canvas, ids, ids == host.mask_token_id, position=position, first=first)

    def sample(self, logits):
        device, host = self.canvases
        self.cuda.sample(on_device(self.cuda, logits), device)
        NumpyOps().sample(logits, host)

    def both(self, name):
        device, host = self.canvases
        return self.cuda.to_host(getattr(device, name)), getattr(host, name)


def on_device(ops, values):
    array = ops._device.empty(values.shape, values.dtype)
    ops._device.upload(array, values)
    return array


def random_logits(seed, block, vocab, dtype=np.float32, scale=3.0):
    logits = np.random.default_rng(seed).normal(size=(1, block, vocab)) * scale
    logits[..., 0] = -20
    return logits.astype(dtype)


def compare_samples(pair):
    """Returns (rows drawn, rows whose tokens differ at a boundary); anything else fails."""
    settings, host = pair.canvases[1].settings, pair.canvases[1]
    chosen, expected = pair.both("chosen")
    first = RULES[settings.rule].chooses_first
    if first:
        assert np.array_equal(chosen.astype(bool), expected)
    rows = np.flatnonzero(expected if first else host.masked)
    found, wanted = pair.both("candidate")
    same = rows[found[rows] == wanted[rows]]
    for slot, row in enumerate(rows):
        if found[row] != wanted[row]:
            assert not settings.greedy
            assert boundary_distance(pair, slot, row, found[row]) < 1e-5
    for name, error in (("log_prob", 2e-5), ("score", 2e-5)):
        if name == "log_prob" or RULES[settings.rule].score != "none":
            ours, theirs = pair.both(name)
            assert np.allclose(ours[same], theirs[same], rtol=error, atol=error), name
    return len(rows), len(rows) - len(same)


def boundary_distance(pair, slot, row, token):
    """How far a row's uniform lies from the share at which `token` begins or ends."""
    host = pair.canvases[1]
    weights = host.scratch.row.weights[slot].astype(np.float64)
    shares = np.concatenate([[0], np.cumsum(weights)]) / weights.sum()
    draw = uniforms(
        host.seed, host.sample_index, host.position + row, host.step, DrawKind.TOKEN
    ).item()
    return np.abs(shares[[token, token + 1]] - draw).min()


@pytest.fixture(scope="module")
def cuda():
    return CudaOps(EmulatedDevice(), run_ahead=False)


def test_draws_are_bit_equal(cuda, tmp_path):
    device = cuda._device
    source = probe_source(KERNELS, tmp_path)
    kernel = device.kernels(source, NAMES)["uniforms"]
    settings = DecodingSettings(rule="low_confidence", steps=1)
    for seed in (0, 5, 2**32 - 1, 2**64 - 1):
        pair = Pair.make(settings, block=4, vocab=70, cuda=cuda, seed=seed)
        pair.begin(position=2**20 + seed % 7)
        canvas = pair.canvases[0]
        for step in range(3):
            out = device.empty((4, 100), np.float64)
            device.launch(kernel, 1, 64, (out.pointer, canvas.scratch.state.pointer, 100))
            for kind in (DrawKind.TOKEN, DrawKind.SELECT, DrawKind.TIME, DrawKind.CHOICE):
                expected = uniforms(seed, 3, canvas.position + np.arange(100), step, kind)
                assert np.array_equal(device.download(out)[kind], expected)
            cuda.sample(on_device(cuda, random_logits(step, 4, 70)), canvas)
            if step < 2:
                state = device.download(canvas.scratch.state)
                state["step"] = step + 1
                device.upload(canvas.scratch.state, state)


def test_one_changed_constant_of_philox_is_noticed(tmp_path):
    source = copy_kernels(KERNELS, tmp_path) / "philox.cuh"
    text = source.read_text("utf-8")
    assert text.count("0xCD9E8D57") == 1
    source.write_text(text.replace("0xCD9E8D57", "0xCD9E8D59"), "utf-8")
    changed = CudaOps(EmulatedDevice(), run_ahead=False, kernels=source.parent)
    pair = Pair.make(DecodingSettings(temperature=1.0), block=8, vocab=300, cuda=changed)
    pair.begin()
    pair.sample(random_logits(1, 8, 300))
    with pytest.raises(AssertionError):
        compare_samples(pair)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("heat", HEATS, ids=str)
def test_samples_are_those_of_numpy(cuda, heat, dtype):
    """Over ragged vocabularies, fixed positions, and logits that are flat, peaked or tied."""
    drawn = tied = 0
    rules = ("threshold", "entropy", "margin", "random", "first_hitting", "ancestral")
    for case, rule in enumerate(rules):
        rng = np.random.default_rng(case)
        vocab = int(rng.choice([5, 63, 64, 65, 128, 200, 517, 1000]))
        block = int(rng.integers(1, 20))
        settings = DecodingSettings(rule=rule, **heat)
        pair = Pair.make(settings, block=block, vocab=vocab, cuda=cuda)
        fixed = np.flatnonzero(rng.random(block) < 0.3)
        pair.begin([(index, 1) for index in fixed])
        logits = random_logits(case, block, vocab, dtype, scale=(0.3, 3.0, 20.0)[case % 3])
        if case % 2:
            logits = np.round(logits)
        pair.sample(logits)
        rows, ties = compare_samples(pair)
        drawn, tied = drawn + rows, tied + ties
    assert drawn
    assert tied <= max(1, MAX_TIE_SHARE * drawn)


@pytest.mark.parametrize(
    ("rule", "heat"), [("entropy", HEATS[1]), ("margin", HEATS[4]), ("threshold", HEATS[0])]
)
def test_samples_of_a_real_vocabulary_are_those_of_numpy(cuda, rule, heat):
    drawn = tied = 0
    for seed, vocab in enumerate((8192, 12345)):
        settings = DecodingSettings(rule=rule, **heat)
        pair = Pair.make(settings, block=4, vocab=vocab, cuda=cuda)
        pair.begin()
        pair.sample(random_logits(seed, 4, vocab, np.float16))
        rows, ties = compare_samples(pair)
        drawn, tied = drawn + rows, tied + ties
    assert tied <= MAX_TIE_SHARE * drawn


def test_bias_penalty_bans_and_allowed_bits_are_those_of_numpy(cuda):
    block, vocab = 6, 145
    rng = np.random.default_rng(4)
    allowed = rng.integers(0, 2**32, size=(block, 5), dtype=np.uint32)
    bias = rng.normal(size=vocab).astype(np.float32)
    for heat in ({"temperature": 0.0}, {"temperature": 1.0, "top_k": 9}):
        settings = DecodingSettings(rule="threshold", repetition_penalty=1.7, **heat)
        pair = Pair.make(settings, block=block, vocab=vocab, cuda=cuda, bias=bias, allowed=allowed)
        for ops, canvas in zip((cuda, NumpyOps()), pair.canvases, strict=True):
            ops.mark_seen(canvas, np.arange(3, 80, 3, dtype=np.int32))
        pair.begin()
        for seed in range(3):
            pair.sample(random_logits(seed, block, vocab))
            assert compare_samples(pair) == (pair.canvases[1].num_masked, 0)
            for ops, canvas in zip((cuda, NumpyOps()), pair.canvases, strict=True):
                ops.commit(canvas)
            seen, expected = pair.both("seen")
            assert np.array_equal(seen.astype(bool), expected)


@pytest.mark.parametrize("rule", ["entropy", "margin"])
def test_statistics_do_not_depend_on_which_thread_reads_what(cuda, rule):
    """First and second highest in one thread, in one warp, or far apart, in either order, and rows
    that rise or fall, so that every batch, or none, has a new highest."""
    vocab, pairs = 1300, [(70, 78), (78, 70), (70, 71), (70, 582), (582, 70), (1290, 3), (5, 1296)]
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(1, len(pairs) + 2, vocab)).astype(np.float32)
    for row, (first, second) in enumerate(pairs):
        logits[0, row, first], logits[0, row, second] = 8.0, 7.5
    logits[0, -2] = np.linspace(-3, 9, vocab)
    logits[0, -1] = np.linspace(9, -3, vocab)
    pair = Pair.make(DecodingSettings(rule=rule), block=len(pairs) + 2, vocab=vocab, cuda=cuda)
    pair.begin()
    pair.sample(logits)
    assert compare_samples(pair) == (len(pairs) + 2, 0)


@pytest.mark.parametrize("rule", ["random", "first_hitting", "ancestral"])
def test_positions_chosen_first_are_those_of_numpy_at_every_step(cuda, rule):
    steps = {"steps": 5} if rule != "first_hitting" else {}
    settings = DecodingSettings(rule=rule, **steps)
    for seed in range(5):
        pair = Pair.make(
            settings, block=33, vocab=66, cuda=cuda, seed=seed,
            unmask_chance=np.array([0.1, 0.5, 0.0, 0.9, 0.2]),
        )  # fmt: skip
        pair.begin([(7, 2)])
        while pair.canvases[1].num_masked:
            pair.sample(random_logits(seed, 33, 66))
            assert compare_samples(pair)[1] == 0
            expected = NumpyOps().commit(pair.canvases[1])
            assert cuda.commit(pair.canvases[0]) == expected
            assert np.array_equal(cuda.ids(pair.canvases[0]), pair.canvases[1].ids[0])


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("block", [1, 7, 40])
def test_commits_of_the_same_scores_are_equal(cuda, rule, block):
    """Every rule over every step of a block, with equal scores among them, text ends included."""
    if rule == "next_token":
        block = 1
    for seed in range(4):
        rng = np.random.default_rng(seed)
        steps = {"steps": int(rng.integers(1, 9))} if "steps" in RULES[rule].options else {}
        pair = Pair.make(DecodingSettings(rule=rule, **steps), block=block, vocab=90, cuda=cuda)
        pair.begin(
            [(index, 0) for index in range(1, block) if rng.random() < 0.1],
            first=int(rng.integers(0, block)),
        )
        device, host = pair.canvases
        for _ in range(2 * block + 10):
            scores = np.round(rng.random(block), 1).astype(np.float32)
            scores = -scores if RULES[rule].score == "entropy" else scores
            tokens = rng.integers(0, 12, size=block).astype(np.int32)
            host.score[:], host.candidate[:] = scores, tokens
            for name in ("score", "candidate"):
                cuda._device.upload(getattr(device, name), getattr(host, name))
            if RULES[rule].chooses_first:
                NumpyOps()._choose(host)
                cuda._device.upload(device.chosen, host.chosen)
            progress = NumpyOps().commit(host)
            assert cuda.commit(device) == progress
            assert np.array_equal(cuda.ids(device), host.ids[0])
            assert np.array_equal(cuda.masked(device), host.masked)
            state = cuda._device.download(device.scratch.state)[0]
            assert (state["step"], state["num_masked"]) == (host.step, host.num_masked)
            assert state["time"] == pytest.approx(host.time, rel=1e-12)
        assert host.num_masked == 0


def test_the_bounds_of_rules_hold_exactly_at_their_edge(cuda):
    for rule, option, scores in (
        ("threshold", {"threshold": 0.5}, [0.4, 0.5, 0.6, 0.5]),
        ("factor", {"factor": 1.0}, [0.5, 2 / 3, 0.9, 0.75]),
        ("entropy_bound", {"entropy_bound": 0.75}, [-0.25, -0.5, -0.25, -1.0]),
    ):
        pair = Pair.make(DecodingSettings(rule=rule, **option), block=4, vocab=70, cuda=cuda)
        pair.begin()
        device, host = pair.canvases
        host.score[:] = scores
        host.candidate[:] = 5
        for name in ("score", "candidate"):
            cuda._device.upload(getattr(device, name), getattr(host, name))
        assert cuda.commit(device) == NumpyOps().commit(host)
        assert np.array_equal(cuda.ids(device), host.ids[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", [3, 70, 199])
def test_a_row_that_is_not_finite_fails_at_the_commit(cuda, value, place):
    pair = Pair.make(DecodingSettings(), block=5, vocab=202, cuda=cuda)
    pair.begin()
    logits = random_logits(1, 5, 202)
    logits[0, 2, place] = value
    before = cuda.ids(pair.canvases[0])
    cuda.sample(on_device(cuda, logits), pair.canvases[0])
    with pytest.raises(EngineError, match="no finite highest value"):
        cuda.commit(pair.canvases[0])
    assert np.array_equal(cuda.ids(pair.canvases[0]), before)
    with pytest.raises(EngineError):
        NumpyOps().sample(logits, pair.canvases[1])


def test_a_row_of_nothing_but_minus_infinity_fails_and_a_masked_one_is_all_it_takes(cuda):
    pair = Pair.make(DecodingSettings(), block=5, vocab=202, cuda=cuda)
    logits = random_logits(1, 5, 202)
    logits[0, 2] = -np.inf
    pair.begin([(2, 9)])
    pair.sample(logits)  # row 2 is not read
    assert compare_samples(pair) == (4, 0)
    assert cuda.commit(pair.canvases[0]) == NumpyOps().commit(pair.canvases[1])
    pair.begin()
    cuda.sample(on_device(cuda, logits), pair.canvases[0])
    with pytest.raises(EngineError):
        cuda.commit(pair.canvases[0])


def test_values_at_banned_ids_are_never_looked_at(cuda):
    pair = Pair.make(DecodingSettings(temperature=1.0), block=5, vocab=202, cuda=cuda)
    pair.begin()
    logits = random_logits(1, 5, 202)
    logits[..., 200] = np.nan
    logits[..., 201] = np.inf
    pair.sample(logits)
    assert compare_samples(pair)[1] == 0


def test_rows_with_one_finite_logit_take_it(cuda):
    for heat in HEATS:
        settings = DecodingSettings(rule="entropy", **heat)
        pair = Pair.make(settings, block=5, vocab=202, cuda=cuda)
        pair.begin()
        logits = np.full((1, 5, 202), -np.inf, np.float32)
        logits[0, np.arange(5), [0, 63, 64, 130, 199]] = 7.0
        pair.sample(logits)
        assert compare_samples(pair) == (5, 0)


def test_a_step_over_a_finished_block_changes_nothing(cuda):
    pair = Pair.make(DecodingSettings(rule="threshold", threshold=0.001), block=6, vocab=90,
                     cuda=cuda)  # fmt: skip
    pair.begin()
    canvas = pair.canvases[0]
    logits = on_device(cuda, random_logits(1, 6, 90, scale=0.1))
    while canvas.num_masked:
        cuda.sample(logits, canvas)
        last = cuda.commit(canvas)
    before = cuda.ids(canvas)
    cuda.sample(logits, canvas)
    again = cuda.commit(canvas)
    assert again == last._replace(num_committed=0)
    assert np.array_equal(cuda.ids(canvas), before)


def test_no_result_depends_on_the_order_of_threads(cuda):
    """A missing barrier would show: fibers run upwards here, downwards there."""
    backwards = CudaOps(EmulatedDevice(downwards=True), run_ahead=False)
    for rule, heat in (("factor", HEATS[4]), ("entropy_bound", HEATS[1]), ("random", HEATS[3])):
        found = []
        for ops in (cuda, backwards):
            settings = DecodingSettings(rule=rule, repetition_penalty=1.2, **heat)
            pair = Pair.make(settings, block=40, vocab=700, cuda=ops)
            pair.begin([(3, 5)])
            ops.sample(on_device(ops, np.round(random_logits(2, 40, 700))), pair.canvases[0])
            progress = ops.commit(pair.canvases[0])
            arrays = ("ids", "masked", "candidate", "log_prob", "score", "seen")
            found.append((progress, [pair.both(name)[0] for name in arrays]))
        assert found[0][0] == found[1][0]
        written = np.flatnonzero(found[0][1][1] | (found[0][1][0][0] != 699))
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


def test_a_step_launches_twice_allocates_nothing_and_copies_no_logits(cuda):
    device = cuda._device
    pair = Pair.make(DecodingSettings(temperature=1.0), block=12, vocab=300, cuda=cuda)
    pair.begin()
    logits = on_device(cuda, random_logits(1, 12, 300))
    before = (device.num_allocations, device.num_launches, device.bytes_downloaded)
    for _ in range(4):
        cuda.sample(logits, pair.canvases[0])
        cuda.commit(pair.canvases[0])
    after = (device.num_allocations, device.num_launches, device.bytes_downloaded)
    assert np.subtract(after, before).tolist() == [0, 8, 0]


def test_a_captured_step_gives_what_its_calls_give(cuda):
    device = cuda._device
    settings = DecodingSettings(rule="low_confidence", temperature=1.0)
    one, other = (Pair.make(settings, block=9, vocab=300, cuda=cuda) for _ in range(2))
    source = on_device(cuda, random_logits(1, 9, 300))
    target = device.empty((1, 9, 300), np.float32)
    step = cuda.capture_step(one.canvases[0], target, lambda: cuda.assign(target, source))
    for position in (17, 26):
        for pair in (one, other):
            pair.begin(position=position)
        while other.canvases[0].num_masked:
            cuda.sample(source, other.canvases[0])
            expected = cuda.commit(other.canvases[0])
            assert cuda.replay_step(one.canvases[0], step) == expected
        assert np.array_equal(cuda.ids(one.canvases[0]), cuda.ids(other.canvases[0]))


def test_running_ahead_reports_the_step_before(cuda):
    ahead = CudaOps(cuda._device)
    settings = DecodingSettings(rule="low_confidence")
    now, late = (Pair.make(settings, block=5, vocab=90, cuda=ops) for ops in (cuda, ahead))
    now.begin()
    late.begin()
    logits = on_device(cuda, random_logits(1, 5, 90))
    reports = []
    for pair in (now, late):
        reports.append([])
        for _ in range(6):
            pair.cuda.sample(logits, pair.canvases[0])
            reports[-1].append(pair.cuda.commit(pair.canvases[0]))
    assert reports[1][0].num_masked == 5
    assert reports[1][1:] == reports[0][:-1]


def test_a_block_too_long_to_be_counted_is_refused(cuda):
    with pytest.raises(ConfigError, match="32767"):
        Pair.make(DecodingSettings(), block=40000, vocab=8, cuda=cuda)
