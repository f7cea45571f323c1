import json
import subprocess
import sys
from pathlib import Path

import pytest
from child_programs import LOAD
from dlm_edge.jetson.sensors.memory import (
    malloc_reader,
    process_memory,
    process_sensors,
    reset_peak,
)
from fake_board import write

ROOT = Path("/")
CHECKOUT = Path(__file__).resolve().parents[3]


def measured(code):
    """What a program of its own prints: this process has other threads, and garbage to free."""
    words = [sys.executable, "-c", f"{LOAD}\n{code}", str(CHECKOUT)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


TOUCHED = """
import json, mmap
from dataclasses import asdict
from pathlib import Path
from dlm_edge.jetson.sensors.memory import process_memory, process_sensors, reset_peak
ROOT = Path("/")
sensor = next(s for s in process_sensors(ROOT) if s.name == "resident")
found = [asdict(process_memory(ROOT))]
# Mapped here, since malloc may serve it from a hole in the heap and keep it when it is freed.
block = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(0, len(block), mmap.PAGESIZE):
    block[page] = 1
found += [asdict(process_memory(ROOT)), sensor.read()]
block.close()
found += [reset_peak(ROOT), asdict(process_memory(ROOT))]
print(json.dumps(found))
"""
HANDED_OUT = """
import ctypes, json
from dlm_edge.jetson.sensors.memory import malloc_reader
sensor = malloc_reader()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
found = [sensor.read()]
block = libc.malloc(32 << 20)
found.append(sensor.read())
libc.free(block)
found.append(sensor.read())
print(json.dumps(found))
"""


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
    before, during, sensed, forgotten, after = measured(TOUCHED)
    # What of files is resident, the kernel may take back at any time.
    assert during["anonymous"] - before["anonymous"] == pytest.approx(64, abs=8)
    for found in (before, during, after):
        assert found["resident"] == pytest.approx(found["anonymous"] + found["file"], abs=1)
    assert sensed == pytest.approx(during["resident"], abs=8)
    if forgotten:
        assert during["peak"] >= during["resident"] - 1
        assert after["peak"] < during["resident"] - 32


def test_malloc_counts_what_it_hands_out():
    if malloc_reader() is None:
        pytest.skip("not glibc 2.33 or newer")
    before, during, after = measured(HANDED_OUT)
    assert during - before == pytest.approx(32, abs=0.5)
    assert after - before == pytest.approx(0, abs=0.5)
