from dataclasses import replace

import pytest
from dlm_edge.export.auto.buckets import best_buckets, text_rate
from dlm_edge.jetson.forecast.plan import GraphPlan, MemoryPlan, Plan

PART = GraphPlan(
    graph="denoise", block=4, context=8, precision="fp32", bytes=0, weight_bytes=0, macs=0,
    operations=0, num_kernels=0, bound="memory", activations_mib=0.0, step_ms=1.0,
    step_ms_uncaptured=1.0, outside_ms=0.0, tokens_per_s=0.0, tokens_per_s_uncaptured=0.0,
    watts=None, joules_per_token=None,
)  # fmt: skip
MEMORY = MemoryPlan(weights=1.0, kv=1.0, activations=1.0, context=0.0, runtime=1.0, available=None)


def plan_of(times):
    """A plan with step times in ms by (block, context); the host adds 1 ms to each."""
    graphs = {
        ("denoise", block, context): replace(
            PART, block=block, context=context, step_ms=taken - 1.0, outside_ms=1.0
        )
        for (block, context), taken in times.items()
    }
    return Plan(
        target="host",
        mode=None,
        tokens_per_nfe=1.0,
        graphs=graphs,
        memory=MEMORY,
        warnings=(),
        assumptions=(),
    )


def test_a_text_takes_the_smallest_bucket_that_holds_what_is_committed():
    plan = plan_of({(4, 4): 2.0, (4, 8): 5.0})
    # Three blocks, at 0, 4 and 8: the first two see the small bucket.
    assert text_rate(plan, [4, 8], 4, 1.0, 12) == pytest.approx(12e3 / (4 * (2 + 2 + 5)))
    assert text_rate(plan, [8], 4, 1.0, 12) == pytest.approx(12e3 / (4 * 15))


def test_more_tokens_per_run_take_fewer_runs_but_never_less_than_one():
    plan = plan_of({(4, 8): 5.0})
    assert text_rate(plan, [8], 4, 2.0, 8) == pytest.approx(8e3 / (2 * 2 * 5))
    assert text_rate(plan, [8], 4, 9.0, 8) == pytest.approx(8e3 / (2 * 5))


def test_one_run_of_a_block_is_the_one_of_twice_its_size():
    plan = plan_of({(4, 8): 5.0, (8, 8): 8.0})
    assert text_rate(plan, [8], 4, 1.0, 8) == pytest.approx(8e3 / (2 * (3 * 5 + 8)))


def test_buckets_that_make_no_difference_are_left_out():
    even = plan_of({(4, 4): 4.95, (4, 8): 5.0, (4, 16): 5.0})
    assert best_buckets(even, 4, 1.0, 20)[0] == (16,)
    steep = plan_of({(4, 4): 1.5, (4, 8): 1.5, (4, 16): 5.0})
    contexts, rate = best_buckets(steep, 4, 1.0, 20)
    assert contexts == (8, 16)
    assert rate == pytest.approx(20e3 / (4 * (3 * 1.5 + 2 * 5)))


def test_a_graph_without_a_cache_has_no_buckets():
    assert best_buckets(plan_of({(8, 0): 5.0}), 8, 1.0, 8) == ((), pytest.approx(200.0))
