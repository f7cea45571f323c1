"""Candidates and scores of the kernels against NumpyOps; draws are bit-equal."""

import numpy as np
import pytest
from dlm_edge.runtime.gpu.compile import OPS
from dlm_edge.runtime.noise.philox import DrawKind, uniforms
from dlm_edge.runtime.ops.cuda.ops import CudaOps
from emulation.device import EmulatedDevice
from emulation.pairs import (
    HEATS,
    MAX_TIE_SHARE,
    Pair,
    commit,
    compare_samples,
    make_pair,
    on_device,
    random_logits,
)
from emulation.probes import NAMES, copy_kernels, probe_source
from rules import decoding


def test_draws_are_bit_equal(cuda, tmp_path):
    device = cuda.device
    source = probe_source(OPS, tmp_path)
    kernel = device.kernels(source, NAMES)["uniforms"]
    settings = decoding(rule="low_confidence", steps=1)
    for seed in (0, 5, 2**32 - 1, 2**64 - 1):
        pair = make_pair(settings, block=4, vocab=70, cuda=cuda, seed=seed)
        pair.begin(position=2**20 + seed % 7)
        canvas = pair.canvases[0]
        for step in range(3):
            out = device.empty((4, 100), np.float64)
            device.launch(kernel, 1, 64, (out.pointer, canvas.memory.state.pointer, 100))
            for kind in (DrawKind.TOKEN, DrawKind.SELECT, DrawKind.TIME, DrawKind.CHOICE):
                expected = uniforms(seed, 3, canvas.place.position + np.arange(100), step, kind)
                assert np.array_equal(device.download(out)[kind], expected)
            pair.forms[0].sample(on_device(cuda, random_logits(step, 4, 70)), canvas)
            if step < 2:
                state = device.download(canvas.memory.state)
                state["step"] = step + 1
                device.upload(canvas.memory.state, state)


def test_one_changed_constant_of_philox_is_noticed(tmp_path):
    source = copy_kernels(OPS, tmp_path) / "cuda/philox.cuh"
    text = source.read_text("utf-8")
    assert text.count("0xCD9E8D57") == 1
    source.write_text(text.replace("0xCD9E8D57", "0xCD9E8D59"), "utf-8")

    def compare(kernels):
        ops = CudaOps(EmulatedDevice(), run_ahead=False, sources=kernels)
        pair = make_pair(decoding(temperature=1.0), block=8, vocab=300, cuda=ops)
        pair.begin()
        pair.sample(random_logits(1, 8, 300))
        return compare_samples(pair)

    assert compare(OPS) == (8, 0)
    with pytest.raises(AssertionError):
        compare(source.parents[1])


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
        settings = decoding(rule=rule, **heat)
        pair = make_pair(settings, block=block, vocab=vocab, cuda=cuda)
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
        settings = decoding(rule=rule, **heat)
        pair = make_pair(settings, block=4, vocab=vocab, cuda=cuda)
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
        settings = decoding(rule="threshold", repetition_penalty=1.7, **heat)
        pair = make_pair(settings, block=block, vocab=vocab, cuda=cuda, bias=bias, allowed=allowed)
        for form, canvas in zip(pair.forms, pair.canvases, strict=True):
            form.mark_seen(canvas, np.arange(3, 80, 3, dtype=np.int32))
        pair.begin()
        for seed in range(3):
            pair.sample(random_logits(seed, block, vocab))
            assert compare_samples(pair) == (pair.host.num_masked, 0)
            for form, canvas in zip(pair.forms, pair.canvases, strict=True):
                commit(form, canvas)
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
    pair = make_pair(decoding(rule=rule), block=len(pairs) + 2, vocab=vocab, cuda=cuda)
    pair.begin()
    pair.sample(logits)
    assert compare_samples(pair) == (len(pairs) + 2, 0)


@pytest.mark.parametrize("rule", ["random", "first_hitting", "ancestral"])
def test_positions_chosen_first_are_those_of_numpy_at_every_step(cuda, rule):
    steps = {"steps": 5} if rule != "first_hitting" else {}
    settings = decoding(rule=rule, **steps)
    for seed in range(5):
        pair = make_pair(
            settings, block=33, vocab=66, cuda=cuda, seed=seed,
            unmask_chance=np.array([0.1, 0.5, 0.0, 0.9, 0.2]),
        )  # fmt: skip
        pair.begin([(7, 2)])
        while pair.host.num_masked:
            pair.sample(random_logits(seed, 33, 66))
            assert compare_samples(pair)[1] == 0
            expected = commit(pair.forms[1], pair.canvases[1])
            assert commit(pair.forms[0], pair.canvases[0]) == expected
            assert np.array_equal(pair.forms[0].ids(pair.canvases[0]), pair.canvases[1].ids[0])


def test_values_at_banned_ids_are_never_looked_at(cuda):
    pair = make_pair(decoding(temperature=1.0), block=5, vocab=202, cuda=cuda)
    pair.begin()
    logits = random_logits(1, 5, 202)
    logits[..., 200] = np.nan
    logits[..., 201] = np.inf
    pair.sample(logits)
    assert compare_samples(pair)[1] == 0


def test_rows_with_one_finite_logit_take_it(cuda):
    for heat in HEATS:
        settings = decoding(rule="entropy", **heat)
        pair = make_pair(settings, block=5, vocab=202, cuda=cuda)
        pair.begin()
        logits = np.full((1, 5, 202), -np.inf, np.float32)
        logits[0, np.arange(5), [0, 63, 64, 130, 199]] = 7.0
        pair.sample(logits)
        assert compare_samples(pair) == (5, 0)


def rows_of(kind: str, vocab: int) -> np.ndarray:
    """(2, vocab) logits, over more of them than the kernel can list."""
    rng = np.random.default_rng(vocab)
    noise = rng.normal(size=(2, vocab))
    rows = {
        "flat": 2 * noise,
        "peaked": 6 * noise,
        "by rank": 0.3 * noise - 1.2 * np.log(np.arange(1, vocab + 1)),
        "in few values": np.round(2 * noise),
        "of two values": np.where(noise > 0, 3.0, -40.0),
        "equal": 0 * noise,
        "far below one": np.where(np.arange(vocab) == 70, 40.0, noise),
    }[kind]
    rows[:, 0] = -50
    return rows[None]


@pytest.mark.parametrize(
    "heat",
    [
        {"top_k": 50}, {"top_k": 3000}, {"top_p": 0.9}, {"top_p": 0.99999},
        {"top_k": 200, "top_p": 0.8}, {"top_k": 2500, "top_p": 0.95},
        {"temperature": 0.7, "top_p": 0.9}, {"temperature": 30.0, "top_p": 0.5},
        {"temperature": 0.05, "top_k": 3500, "top_p": 0.3},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(
    "kind",
    ["flat", "peaked", "by rank", "in few values", "of two values", "equal", "far below one"],
)
def test_what_top_k_and_top_p_keep_does_not_depend_on_where_they_look_first(cuda, kind, heat):
    """A sample says where the cut lies; if it is wrong, or too much lies there, it is narrowed."""
    drawn = tied = 0
    for vocab, dtype in ((3073, np.float16), (4099, np.float32), (12345, np.float16)):
        settings = decoding(rule="threshold", **{"temperature": 1.0, **heat})
        pair = make_pair(settings, block=2, vocab=vocab, cuda=cuda)
        pair.begin()
        pair.sample(rows_of(kind, vocab).astype(dtype))
        rows, ties = compare_samples(pair)
        drawn, tied = drawn + rows, tied + ties
    assert drawn == 6
    assert tied <= 1


@pytest.mark.parametrize("share", [0.25, 0.5, 1 - 2**-10])
def test_of_equal_weights_the_lowest_ids_are_kept_to_the_last_one(cuda, share):
    """The kept ones of 4,096: drawn often enough, their highest id is the last that may be."""
    settings = decoding(rule="threshold", temperature=1.0, top_p=share)
    pair = make_pair(settings, block=64, vocab=4098, cuda=cuda)  # the last two are banned
    pair.begin()
    pair.sample(np.zeros((1, 64, 4098), np.float32))
    assert compare_samples(pair)[1] <= 1
    weights = pair.host.scratch.weights
    assert np.count_nonzero(weights[0]) == 4096 * share
    found, _ = pair.both("candidate")
    assert found.max() < 4096 * share


def sample_many(cuda, row, block, **heat) -> Pair:
    """Draws so often from one row, of which the last two ids are banned, that a wrong cut shows."""
    row = np.concatenate([row, [0, 0]]).astype(np.float32)
    settings = decoding(rule="threshold", **heat)
    pair = make_pair(settings, block=block, vocab=row.size, cuda=cuda)
    pair.begin()
    pair.sample(np.broadcast_to(row, (1, block, row.size)))
    rows, ties = compare_samples(pair)
    assert rows == block
    assert ties <= 1
    return pair


def test_weights_on_the_windows_edge_are_counted_once(cuda):
    """Between the highest and those around the cut stand 2,000 of 2^-5: a bin begins there."""
    rng = np.random.default_rng(0)
    near = np.float32(-5 * np.log(2)) + np.arange(-40, 41, dtype=np.float32) * np.float32(2e-7)
    exact = near[near * np.float32(1.44269504) == -5]
    assert exact.size
    low = -6.5 - 2.5 * rng.random(4192)
    row = np.concatenate([np.full(1999, -0.7), [0.0], np.full(2000, exact[0]), low])
    pair = sample_many(cuda, row, 16, temperature=1.0, top_k=4500)
    assert np.count_nonzero(pair.host.scratch.weights[0]) == 4500


@pytest.mark.parametrize("heat", [{"top_k": 1400}, {"top_k": 3000}, {"top_p": 0.6}, {"top_p": 0.9}])
@pytest.mark.parametrize("sampled", [0, 1])
def test_a_sample_that_misleads_costs_no_token(cuda, sampled, heat):
    """Every second chunk is read beforehand: all high weights stand in those, or none of them."""
    rng = np.random.default_rng(0)
    high, low = rng.random(2048), 4 + rng.random(2048)
    row = np.empty((32, 2, 64))
    row[:, sampled], row[:, 1 - sampled] = -high.reshape(32, 64), -low.reshape(32, 64)
    sample_many(cuda, row.reshape(-1), 64, temperature=3.0, **heat)
