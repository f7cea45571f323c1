import numpy as np
import pytest
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.runtime.noise.philox import DrawKind, check_key, philox, uniforms

KNOWN_ANSWERS = [  # Random123, kat_vectors, philox4x32 10
    ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def scalar_philox(counter: list[int], key: list[int]) -> list[int]:
    """An independent implementation on Python integers, straight from the paper."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [
            (second >> 32) ^ c[1] ^ k[0],
            second & 0xFFFFFFFF,
            (first >> 32) ^ c[3] ^ k[1],
            first & 0xFFFFFFFF,
        ]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_known_answers(counter, key, words):
    got = philox(np.array(counter, np.uint64).reshape(4, 1), np.array(key, np.uint64))
    assert got.dtype == np.uint32
    assert got[:, 0].tolist() == words


def test_philox_equals_a_scalar_implementation_on_random_counters():
    rng = np.random.default_rng(0)
    counters = rng.integers(0, 2**32, size=(4, 50), dtype=np.uint64)
    key = rng.integers(0, 2**32, size=2, dtype=np.uint64)
    got = philox(counters, key)
    for column in range(50):
        assert got[:, column].tolist() == scalar_philox(counters[:, column].tolist(), key.tolist())


def test_uniforms_follow_the_documented_layout():
    seed, sample, position, step = 0x123456789ABCDEF0, 7, 42, 3
    counter = [position, step, DrawKind.CHOICE, seed >> 32]
    words = scalar_philox(counter, [seed & 0xFFFFFFFF, sample])
    expected = ((words[0] | words[1] << 32) >> 11) * 2.0**-53
    assert uniforms(seed, sample, position, step, DrawKind.CHOICE) == expected


def test_uniforms_do_not_depend_on_which_others_are_drawn_with_them():
    whole = uniforms(5, 1, np.arange(40), np.arange(3)[:, None], DrawKind.TOKEN)
    assert whole.shape == (3, 40)
    assert whole[2, 17] == uniforms(5, 1, 17, 2, DrawKind.TOKEN)


def test_uniforms_are_uniform_and_differ_by_every_part_of_the_key():
    base = uniforms(5, 1, np.arange(20_000), 0, DrawKind.TOKEN)
    assert base.min() >= 0
    assert base.max() < 1
    counts = np.histogram(base, bins=20, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # chi-square, 19 degrees, 0.1 %
    for other in (
        uniforms(6, 1, np.arange(20_000), 0, DrawKind.TOKEN),
        uniforms(5 + 2**32, 1, np.arange(20_000), 0, DrawKind.TOKEN),
        uniforms(5, 2, np.arange(20_000), 0, DrawKind.TOKEN),
        uniforms(5, 1, np.arange(20_000), 1, DrawKind.TOKEN),
        uniforms(5, 1, np.arange(20_000), 0, DrawKind.SELECT),
    ):
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.03


@pytest.mark.parametrize(("seed", "sample"), [(-1, 0), (2**64, 0), (0, -1), (0, 2**32)])
def test_keys_out_of_range_are_refused(seed, sample):
    with pytest.raises(ConfigError):
        check_key(seed, sample)
