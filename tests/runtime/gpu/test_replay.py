"""What is replayed, and when: every sequence must do exactly what its calls would have done."""

import weakref
from itertools import pairwise

import numpy as np
import pytest
from dlm_edge.runtime.errors import DeviceError, EngineError
from dlm_edge.runtime.gpu.compile import OPS
from dlm_edge.runtime.gpu.replay import MAX_COMPARED_BYTES, MAX_STEPS, ReplayingDevice
from emulation.device import EmulatedDevice


@pytest.fixture
def device():
    return ReplayingDevice(EmulatedDevice())


def filled(device, values):
    array = device.empty((len(values),), np.int32)
    device.upload(array, np.array(values))
    return array


def rotate(device, arrays):
    for target, source in pairwise(arrays):
        device.copy(target, source)


def test_a_step_is_captured_at_its_second_time_and_replayed_from_then_on(device):
    arrays = [filled(device, [n, n]) for n in range(4)]
    for turn in range(4):
        rotate(device, arrays)
        device.flush(repeats=True)
        assert (device.num_captured, device.num_replayed) == (int(turn > 0), max(0, turn))
        assert [device.download(a)[0] for a in arrays] == [min(n + turn + 1, 3) for n in range(4)]


def test_what_does_not_say_that_it_repeats_is_never_captured(device):
    arrays = [filled(device, [n]) for n in range(3)]
    for _ in range(5):
        rotate(device, arrays)
        device.flush()
    assert device.num_captured == 0


def test_another_address_is_another_step(device):
    one, two, three = (filled(device, [n]) for n in range(3))
    for _ in range(3):
        device.copy(two, one)
        device.copy(three, one)
        device.flush(repeats=True)
    device.copy(one, two)
    device.copy(three, one)
    device.flush(repeats=True)
    assert device.num_captured == 1


def test_the_host_sees_everything_enqueued_before_it_reads_or_writes(device):
    one, two = filled(device, [1]), filled(device, [2])
    device.copy(two, one)
    device.upload(one, np.array([7]))
    assert device.download(two).tolist() == [1]
    device.zero(two)
    assert device.download(two).tolist() == [0]
    device.copy(two, one)
    device.synchronize()
    assert device.inner.view(two).tolist() == [7]


def test_what_is_written_over_is_not_held_wherever_the_writing_begins(device):
    whole = filled(device, list(range(64)))
    part, large = whole.rows(8, 4), whole.rows(4, 32)
    fixed = np.arange(100, 132, dtype=np.int32)
    fixed.flags.writeable = False
    other = filled(device, [7] * 64)
    for write in (
        lambda: device.upload(whole, np.zeros(64, np.int32)),
        lambda: device.copy(whole, other),
        lambda: device.zero(whole),
        lambda: device.hold(large, fixed),
    ):
        device.hold(part, np.array([1, 2, 3, 4]))
        write()
        device.hold(part, np.array([1, 2, 3, 4]))
        assert device.download(part).tolist() == [1, 2, 3, 4]
    device.hold(large, fixed)  # of which `part` has been written since
    assert device.download(large).tolist() == fixed.tolist()
    device.hold(large.rows(0, 4), np.array([9, 9, 9, 9]))  # the same address, another size
    device.hold(large, fixed)
    assert device.download(large).tolist() == fixed.tolist()


def test_values_held_are_uploaded_once_until_something_else_writes_there(device):
    target, other = filled(device, [0]), filled(device, [5])
    counts = device.inner.counts
    before = counts["uploads"]
    for _ in range(3):
        device.hold(target, np.array([3]))
    assert counts["uploads"] == before + 1
    device.copy(target, other)
    device.hold(target, np.array([3]))
    assert device.download(target).tolist() == [3]
    device.upload(target, np.array([4]))
    device.hold(target, np.array([3]))
    device.zero(target)
    device.hold(target, np.array([3]))
    assert device.download(target).tolist() == [3]
    assert counts["uploads"] == before + 5


def test_only_so_many_steps_are_kept(device):
    arrays = [filled(device, [n]) for n in range(MAX_STEPS + 6)]
    for _ in range(2):
        for one, two in pairwise(arrays):
            device.copy(one, two)
            device.copy(two, one)
            device.flush(repeats=True)
    assert len(device._steps) == MAX_STEPS


def test_a_device_that_captures_nothing_says_so_once_and_goes_on():
    class Plain(EmulatedDevice):
        def capture(self, run):
            raise DeviceError("no graphs here")

    notes = []
    device = ReplayingDevice(Plain(), notes.append)
    arrays = [filled(device, [n]) for n in range(4)]
    for _ in range(4):
        rotate(device, arrays)
        device.flush(repeats=True)
    assert [device.download(a)[0] for a in arrays] == [3, 3, 3, 3]
    assert len(notes) == 1
    assert "no graphs here" in notes[0]


def test_an_engine_that_refuses_is_told_where_its_work_goes_out(device):
    def refuse():
        raise EngineError("refuses to run")

    device.submit("engine", refuse)
    with pytest.raises(EngineError, match="refuses to run"):
        device.flush(repeats=True)
    device.flush()  # and is not tried again


def test_what_is_forgotten_is_not_enqueued_later(device):
    one, two = filled(device, [1]), filled(device, [2])
    device.copy(one, two)
    device.forget()
    assert device.download(one).tolist() == [1]


def test_capturing_by_hand_takes_what_was_enqueued_within(device):
    one, two = filled(device, [1]), filled(device, [2])
    step = device.capture(lambda: device.copy(one, two))
    assert device.download(one).tolist() == [1]
    step.replay()
    assert device.download(one).tolist() == [2]


def test_memory_freed_while_a_call_that_uses_it_waits_is_still_there_for_it(device):
    target = filled(device, [0] * 1000)
    freed = filled(device, [7] * 1000)
    kernel = device.kernels(OPS / "cuda/copy.cu", ("append_rows",))["append_rows"]
    table = filled(device, [0] * 6)
    sizes = (1, freed.nbytes, freed.nbytes)
    device.launch(kernel, 1, 64, (freed.pointer, target.pointer, table.pointer, 1, *sizes))
    del freed
    filled_again = [device.inner.empty((1000,), np.int32) for _ in range(50)]
    assert device.download(target).tolist() == [7] * 1000
    assert filled_again


def test_an_engines_run_alone_is_worth_a_capture_and_a_single_copy_is_not(device):
    runs = []
    one, two = filled(device, [1]), filled(device, [2])
    for _ in range(3):
        device.submit("engine", lambda: device.inner.enqueue(lambda: runs.append(1)))
        device.flush(repeats=True)
        device.copy(one, two)
        device.flush(repeats=True)
    assert device.num_captured == 1
    assert device.num_replayed == 2
    assert len(runs) == 3


def test_memory_let_go_while_a_step_goes_out_is_freed_after_it(device):
    """The driver frees nothing while it captures."""
    for captured in (0, 1):
        doomed = [device.empty((4,), np.int32)]
        memory = weakref.ref(doomed[0].owner._owner)
        seen = []

        def run(doomed=doomed, memory=memory, seen=seen):
            doomed.clear()
            seen.append(memory() is not None)

        device.submit("run", run)
        device.flush(repeats=True)
        assert seen == [True]
        assert memory() is None
        assert device.num_captured == captured


def test_the_step_unused_for_longest_is_the_one_let_go(device):
    one, two = filled(device, [1, 2, 3]), filled(device, [4, 5, 6])
    steps = [lambda n=n: device.copy(one.rows(0, n), two.rows(0, n)) for n in (1, 2)]

    def send(step):
        step()
        step()
        device.flush(repeats=True)

    for _ in range(2):
        send(steps[0])
    for number in range(MAX_STEPS - 1):
        device.submit(number, lambda: None)
        device.flush(repeats=True)
        send(steps[0])  # in use all the time
    for _ in range(2):  # a new one finds a place
        send(steps[1])
    assert device.num_captured == 2
    send(steps[0])
    assert device.num_captured == 2


def test_new_memory_where_values_were_held_holds_none_of_them(device, monkeypatch):
    target = filled(device, [0])
    device.hold(target, np.array([3]))
    monkeypatch.setattr(device.inner, "empty", lambda shape, dtype: target)  # freed, given again
    again = device.empty((1,), np.int32)
    device.inner.view(again)[0] = -1
    device.hold(again, np.array([3]))
    assert device.download(again).tolist() == [3]


def test_what_was_held_is_forgotten_too(device):
    target = filled(device, [0])
    device.hold(target, np.array([3]))
    device.forget()
    device.inner.view(target)[0] = -1
    device.hold(target, np.array([3]))
    assert device.download(target).tolist() == [3]


def test_a_larger_array_is_held_if_it_cannot_change(device):
    target, source = filled(device, [0] * 64), np.full(64, 7)
    source.flags.writeable = False
    before = device.inner.counts["uploads"]
    for _ in range(3):
        device.hold(target, source)
    assert device.inner.counts["uploads"] == before + 1
    other = source.copy()
    other.flags.writeable = False
    device.hold(target, other)
    assert device.inner.counts["uploads"] == before + 2
    device.upload(target, np.zeros(64))
    device.hold(target, other)
    assert device.download(target).tolist() == [7] * 64


def test_small_values_are_held_and_larger_ones_that_may_change_never(device):
    for size, uploads in ((MAX_COMPARED_BYTES // 4, 1), (MAX_COMPARED_BYTES // 4 + 1, 3)):
        target = filled(device, [0] * size)
        before = device.inner.counts["uploads"]
        for _ in range(3):
            device.hold(target, np.full(size, 7))
        assert device.inner.counts["uploads"] == before + uploads


def test_a_launch_with_other_arguments_or_on_another_grid_is_another_step(device):
    target, source = filled(device, [0] * 64), filled(device, [7] * 64)
    table = filled(device, [0] * 6)
    kernel = device.kernels(OPS / "cuda/copy.cu", ("append_rows",))["append_rows"]

    def send(grid, block, size):
        for _ in range(2):
            device.launch(
                kernel,
                grid,
                block,
                (source.pointer, target.pointer, table.pointer, grid, 1, size, size),
            )
        device.flush(repeats=True)

    for _ in range(2):
        send(1, 32, 16)
    assert device.num_captured == 1
    for other in ((2, 32, 16), (1, 64, 16), (1, 32, 32)):
        send(*other)
    assert (device.num_captured, device.num_replayed) == (1, 1)
    assert device.download(target)[:8].tolist() == [7] * 8
