"""4 bits: what is on a grid is found exactly, what is not is rounded with less loss."""

import gguf
import numpy as np
import pytest
from dlm_edge.calibration.grids import GROUP, board_group, find_grid, round_to_grid

RNG = np.random.default_rng(0)


def read_back(matrix, kind):
    """The values that a GGUF file of a kind gives for a matrix."""
    kind = gguf.GGMLQuantizationType[kind]
    return gguf.dequantize(gguf.quantize(matrix, kind), kind)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_values_of_a_4_bit_file_are_met_exactly(kind, scale):
    matrix = (RNG.standard_normal((24, 4 * GROUP)) * scale).astype(np.float32)
    matrix[3, :GROUP] = 0
    matrix[4, :GROUP] = 7
    values = read_back(matrix, kind)
    grid = find_grid(values)
    assert grid is not None
    assert np.array_equal(grid.values(), values)
    assert np.array_equal(grid.lows, -8 * grid.steps) == (kind == "Q4_0") or kind == "Q4_0"


def test_a_file_that_needs_no_offsets_gives_none():
    values = read_back(RNG.standard_normal((24, 4 * GROUP)).astype(np.float32), "Q4_0")
    grid = find_grid(values)
    assert np.array_equal(grid.lows, -8 * grid.steps)


def test_groups_that_use_few_of_their_levels_and_steps_of_17_bits_are_met():
    steps = (RNG.integers(1, 64, (6, 2)) * np.float16(0.0123)).astype(np.float32)
    lows = -(RNG.integers(1, 64, (6, 2)) * np.float16(0.0531)).astype(np.float32)
    codes = RNG.integers(3, 12, (6, 2, GROUP))
    values = (codes * steps[..., None] + lows[..., None]).astype(np.float32).reshape(6, -1)
    grid = find_grid(values)
    assert grid is not None
    assert np.array_equal(grid.values(), values)


def test_blocks_of_q4_k_are_met():
    blocks = RNG.integers(0, 256, (64 * 3, 144), dtype=np.uint8)
    factors = RNG.uniform(0.001, 0.01, (len(blocks), 2)).astype(np.float16)
    blocks[:, :4] = factors.view(np.uint8)  # of steps and of offsets; six bits each follow
    values = gguf.dequantize(blocks, gguf.GGMLQuantizationType.Q4_K).reshape(64, -1)
    grid = find_grid(values)
    assert grid is not None
    assert np.array_equal(grid.values(), values)


def test_one_value_beside_the_grid_is_none():
    values = read_back(RNG.standard_normal((300, 2 * GROUP)).astype(np.float32), "Q4_1")
    values[117, 40] += 1e-4
    assert find_grid(values) is None
    assert find_grid(RNG.standard_normal((8, GROUP)).astype(np.float32)) is None
    assert find_grid(np.zeros((8, GROUP + 1), np.float32)) is None


def test_two_codes_share_a_byte_and_the_earlier_is_low():
    grid = round_to_grid(RNG.standard_normal((3, GROUP)).astype(np.float32))
    packed = grid.packed()
    assert packed.shape == (3, 1, GROUP // 2)
    assert np.array_equal(packed & 15, grid.codes[..., 0::2])
    assert np.array_equal(packed >> 4, grid.codes[..., 1::2])


def test_plain_rounding_is_within_half_a_step():
    matrix = RNG.standard_normal((16, 3 * GROUP)).astype(np.float32)
    grid = round_to_grid(matrix)
    limit = np.repeat(grid.steps, GROUP, axis=1) * 0.55
    assert (np.abs(grid.values() - matrix) <= limit).all()


@pytest.mark.parametrize("board", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_rounding_that_knows_the_inputs_loses_less_of_the_product(seed, board):
    rng = np.random.default_rng(seed)
    kind = {"size": 64, "symmetric": True} if board else {}
    inputs = 128 if board else 3 * GROUP
    mixing = rng.standard_normal((inputs, inputs)) * np.exp(rng.standard_normal(inputs))
    rows = rng.standard_normal((2000, inputs)) @ mixing
    matrix = rng.standard_normal((40, inputs)).astype(np.float32)
    train, held_out = rows[:1500], rows[1500:]

    def loss(grid):
        off = held_out @ (grid.values() - matrix).T
        return np.square(off).sum() / np.square(held_out @ matrix.T).sum()

    plain = round_to_grid(matrix, **kind)
    aware = round_to_grid(matrix, train.T @ train, **kind)
    assert loss(aware) < (0.9 if board else 0.75) * loss(plain)
    # What it writes is on a grid, steps in float16.
    assert np.array_equal(aware.steps, aware.steps.astype(np.float16))
    assert np.array_equal(aware.lows, aware.lows.astype(np.float16))


def test_a_boards_grid_has_its_middle_at_zero_and_positive_steps():
    matrix = RNG.standard_normal((16, 256)).astype(np.float32)
    matrix[3, :128] = 0
    grid = round_to_grid(matrix, size=128, symmetric=True)
    assert grid.codes.shape == (16, 2, 128)
    assert (grid.steps > 0).all()
    assert np.array_equal(grid.steps, grid.steps.astype(np.float16))
    steps = np.repeat(grid.steps, 128, axis=1)
    assert np.array_equal(grid.values(), grid.signed() * steps)
    assert (grid.signed().min(), grid.signed().max()) == (-8, 7)
    # A range that clips a little loses less than one that clips nothing.
    widest = np.repeat(np.abs(matrix).reshape(16, 2, 128).max(axis=2) / 7, 128, axis=1)
    widest[widest == 0] = 1
    plain = np.rint(matrix / widest) * widest
    assert np.square(grid.values() - matrix).sum() < np.square(plain - matrix).sum()


@pytest.mark.parametrize(("inputs", "size"), [(896, 128), (576, 64), (96, None)])
def test_groups_of_a_board_are_the_largest_that_divide_the_inputs(inputs, size):
    assert board_group(inputs) == size


def test_inputs_that_are_never_there_do_not_stop_it():
    matrix = RNG.standard_normal((4, GROUP)).astype(np.float32)
    moments = np.zeros((GROUP, GROUP))
    assert np.isfinite(round_to_grid(matrix, moments).values()).all()
