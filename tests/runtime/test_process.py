import os
import subprocess
import sys

import pytest
from dlm_edge.runtime import process
from dlm_edge.runtime.process import peak_rss_mib, usable_cores


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
