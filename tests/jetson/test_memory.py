import ctypes
import gc
import mmap
from pathlib import Path

import pytest
from dlm_edge.jetson.memory import malloc_reader, process_memory, process_sensors, reset_peak
from fake_board import write

ROOT = Path("/")


def test_the_kernels_figures_are_read_in_mib(tmp_path):
    write(
        tmp_path,
        "proc/self/status",
        "Name:\tpython\nVmHWM:\t  204800 kB\nVmRSS:\t  102400 kB\nRssAnon:\t   51200 kB\n"
        "RssFile:\t   40960 kB\nRssShmem:\t   10240 kB\n",
    )
    found = process_memory(tmp_path)
    assert (found.resident, found.peak, found.anonymous, found.file) == (100, 200, 50, 50)


def test_where_nobody_counts_nothing_is_claimed(tmp_path):
    assert process_memory(tmp_path) is None
    assert not reset_peak(tmp_path)
    assert "resident" not in [sensor.name for sensor in process_sensors(tmp_path)]


def test_touching_memory_shows_and_the_peak_can_be_forgotten():
    if process_memory(ROOT) is None:
        pytest.skip("no /proc here")
    gc.collect()  # else what other tests left may be freed in between
    before = process_memory(ROOT)
    # Mapped here, since malloc may serve it from a hole in the heap and keep it when it is freed.
    block = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(0, len(block), mmap.PAGESIZE):
        block[page] = 1
    during = process_memory(ROOT)
    assert during.resident - before.resident == pytest.approx(64, abs=8)
    sensor = next(s for s in process_sensors(ROOT) if s.name == "resident")
    assert sensor.read() == pytest.approx(during.resident, abs=8)
    block.close()
    if reset_peak(ROOT):
        assert process_memory(ROOT).peak < during.resident - 32


def test_malloc_counts_what_it_hands_out():
    sensor = malloc_reader()
    if sensor is None:
        pytest.skip("not glibc 2.33 or newer")
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    before = sensor.read()
    block = libc.malloc(32 << 20)
    assert sensor.read() - before == pytest.approx(32, abs=0.5)
    libc.free(block)
    assert sensor.read() - before == pytest.approx(0, abs=0.5)
