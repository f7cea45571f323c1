import time

from dlm_edge.benchmarks.clocks import LEAST_S, clock_for, timed


def test_one_thread_is_timed_by_its_own_cpu_time():
    assert clock_for(1) is time.thread_time
    assert clock_for(2) is time.perf_counter


def test_what_a_call_gives_comes_with_its_seconds():
    now = iter([3.0, 5.5])
    assert timed(lambda: "text", lambda: next(now)) == ("text", 2.5)


def test_a_clock_that_sees_nothing_gives_no_zero_to_divide_by():
    assert timed(int, lambda: 7.0) == (0, LEAST_S)
