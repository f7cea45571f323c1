"""`python -m dlm_edge.export`."""

import subprocess
import sys


def test_the_package_runs_as_the_command():
    words = [sys.executable, "-m", "dlm_edge.export", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: dlm-export ")
