import pytest
from dlm_edge.jetson.forecast import roofline
from dlm_edge.jetson.forecast.roofline import power
from dlm_edge.jetson.graph.cost import GraphCost, Kernel
from dlm_edge.jetson.targets import target

NANO = target("orin-nano")
MODE = NANO.modes["maxn-super"]
IDLE = roofline.KERNEL_CLOCKS / (MODE.gpu_mhz * 1e6)


def cost(*kernels):
    return GraphCost(
        kernels=kernels,
        nodes=(),
        macs=sum(kernel.macs for kernel in kernels),
        weight_bytes=0,
        stored_bytes=0,
        widened_bytes=0,
        input_bytes=0,
        output_bytes=0,
        activation_bytes=0,
        node_activation_bytes=0,
    )


def product(rows, inner, columns, dtype="float16"):
    size = 1 if dtype == "int8" else 2
    return Kernel(
        op="MatMul",
        num_nodes=1,
        macs=rows * inner * columns,
        rows=rows,
        inner=inner,
        columns=columns,
        dtype=dtype,
        weight_bytes=inner * columns * size,
    )


def test_a_product_of_few_rows_takes_its_weights_time():
    run = roofline.gpu_time(cost(product(16, 4096, 4096)), NANO, MODE)
    bandwidth = MODE.bandwidth_gb_s * 1e9 * roofline.BANDWIDTH_SHARE
    assert run.captured_ms == pytest.approx(1e3 * (4096 * 4096 * 2 / bandwidth + IDLE))
    assert (run.bound, run.bytes) == ("memory", 4096 * 4096 * 2)


def test_the_share_of_the_bandwidth_is_that_of_published_decoding_rates():
    """Qwen3 0.6B and 1.7B in INT4 with TensorRT Edge-LLM: 61.0 and 32.3 tokens/s on the Nano.

    What a token reads beside the cache, which is the same for both: linear layers at 4 bits with a
    float16 scale per 128, and the float16 head; the rest of a run's time cancels.
    """
    small, large = (
        linear * (0.5 + 2 / 128) + 151_936 * width * 2
        for linear, width in ((440e6, 1024), (1410e6, 2048))
    )
    reached = (large - small) / (1 / 32.3 - 1 / 61.0)
    peak = NANO.modes["15w"].bandwidth_gb_s * 1e9
    assert reached / peak == pytest.approx(roofline.BANDWIDTH_SHARE, rel=0.05)
    # What is left, with the cache of 2,048 positions counted, is that of 28 layers of ten kernels.
    cache = 28 * 2 * 8 * 128 * 2 * 2048
    left = 1 / 61.0 - (small + cache) / (roofline.BANDWIDTH_SHARE * peak)
    clocks = left * NANO.modes["15w"].gpu_mhz * 1e6 / 280
    assert clocks == pytest.approx(roofline.KERNEL_CLOCKS, rel=0.3)


def test_a_product_of_many_rows_takes_its_operations_time():
    run = roofline.gpu_time(cost(product(4096, 4096, 4096)), NANO, MODE)
    rate = MODE.fp16_tflops * 1e12 * roofline.PRODUCT_SHARE
    assert run.captured_ms == pytest.approx(1e3 * (2 * 4096**3 / rate + IDLE))
    assert run.bound == "products"


def test_int8_doubles_the_rate_and_tf32_halves_it():
    seconds = {
        dtype: roofline.product_seconds(product(4096, 512, 512, dtype), MODE)
        for dtype in ("int8", "float16", "float32")
    }
    assert seconds["float16"] == pytest.approx(2 * seconds["int8"])
    assert seconds["float32"] == pytest.approx(2 * seconds["float16"])


def test_rows_cost_whole_tiles():
    one, tile, more = (roofline.product_seconds(product(n, 512, 512), MODE) for n in (1, 16, 17))
    assert one == pytest.approx(tile)
    assert more == pytest.approx(2 * tile)


def test_small_kernels_are_bound_by_launches_and_capturing_helps():
    tiny = [Kernel(op="pointwise", num_nodes=3, outer_bytes=64) for _ in range(100)]
    run = roofline.gpu_time(cost(*tiny), NANO, MODE)
    launch = roofline.LAUNCH_US * 1e-6 * roofline.LAUNCH_CPU_MHZ / MODE.cpu_mhz
    assert run.bound == "launches"
    assert run.uncaptured_ms == pytest.approx(100 * launch * 1e3)
    assert run.captured_ms < run.uncaptured_ms


def test_values_between_kernels_cost_memory_only_beyond_the_cache():
    small, large = (Kernel(op="Softmax", num_nodes=1, passed=(n << 20,)) for n in (1, 2))
    cache = NANO.l2_mib * 2**20 * roofline.CACHE_SHARE
    assert roofline.memory_bytes(small, cache) == 0
    assert roofline.memory_bytes(large, cache) == 2 << 20


def test_a_faster_mode_is_never_slower():
    kernels = cost(product(32, 1024, 1024), product(512, 1024, 1024))
    times = [
        roofline.gpu_time(kernels, NANO, NANO.modes[name]).captured_ms
        for name in ("7w", "15w", "25w", "maxn-super")
    ]
    assert times == sorted(times, reverse=True)


def test_the_power_model_meets_the_points_it_was_fitted_to():
    slow = NANO.modes["25w"]
    # SmolLM2-135M in 8 bits at 165 tokens/s: 143 MB and 0.27 GFLOP per token; 7.3 W published.
    token = power(slow, 1 / 165.2, int(143e6), 0.27e9, 0.0)
    assert token.watts == pytest.approx(7.3, rel=0.1)
    # A language model at MAXN_SUPER: 80 GB/s and 8 TFLOPS; 21.7 W published.
    peak = power(MODE, 1.0, int(80e9), 8e12, 0.0)
    assert peak.watts == pytest.approx(21.7, rel=0.2)


def test_an_int8_operation_takes_half_of_a_float16_ones_energy():
    idle, half, whole = (
        power(MODE, 1.0, 0, fp16, int8).joules_per_run
        for fp16, int8 in ((0.0, 0.0), (0.0, 4e12), (4e12, 0.0))
    )
    assert half - idle == pytest.approx((whole - idle) / 2)
    assert whole > idle


def test_a_mode_with_a_budget_caps_power_but_not_the_energy():
    low = NANO.modes["7w"]
    found = power(low, 1.0, int(50e9), 3e12, 0.0)
    assert (found.watts, found.capped) == (7.0, True)
    assert found.joules_per_run > 7.0
    assert not power(MODE, 1.0, int(50e9), 3e12, 0.0).capped
