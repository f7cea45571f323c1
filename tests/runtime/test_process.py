import os
import platform
import subprocess
import sys

import pytest
from dlm_edge.runtime import process
from dlm_edge.runtime.process import peak_rss_mib, return_freed_memory, usable_cores


def test_peak_memory_is_that_of_this_process():
    assert 5 < peak_rss_mib() < 1 << 20


def test_a_process_that_may_use_one_core_counts_one():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system binds no process to cores")
    code = (
        "import os, runpy, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "print(runpy.run_path(sys.argv[1])['usable_cores']())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, process.__file__], capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"
    assert usable_cores() >= 1


FREED = """
import sys
from pathlib import Path
from dlm_edge.runtime.process import return_freed_memory

if sys.argv[1] == "returned":
    return_freed_memory()
held = bytearray(8 << 20)
del held  # from here on glibc keeps blocks of this size
blocks = [bytearray(4 << 20) for _ in range(16)]
for block in blocks:
    block[::4096] = b"x" * 1024
last = bytearray(64 << 10)
del blocks, block
print(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries return it anyway")
def test_large_blocks_that_are_freed_go_back_to_the_system():
    def resident(how):
        command = [sys.executable, "-c", FREED, how]
        return int(subprocess.run(command, capture_output=True, check=True).stdout)

    assert resident("returned") < resident("kept") - (32 << 10)


def test_beside_pytorch_memory_is_left_as_it_is(monkeypatch):
    asked = []
    monkeypatch.setattr(process.ctypes, "CDLL", asked.append)
    monkeypatch.setitem(sys.modules, "torch", sys)
    return_freed_memory()
    assert not asked
    monkeypatch.delitem(sys.modules, "torch")
    return_freed_memory()  # None has no mallopt: nothing is said
    assert asked == [None]
