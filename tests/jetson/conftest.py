"""A board's files, one short run of the model that ships, traced block steps; each made once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from child_programs import LOAD
from fake_board import make_board
from untrained_draft import make_draft

ROOT = Path(__file__).resolve().parents[2]
PROFILE = f"""{LOAD}
import json, time
from contextlib import contextmanager
from pathlib import Path
from dlm_edge.jetson.profile.profile import Profiler
from dlm_edge.jetson.profile.profile import ProfileOptions
def readings(profiler):
    column = profiler.sampler.series.columns.get("malloc")
    return len(column.values) if column else 0
span = Profiler.span
@contextmanager
def span_with_a_reading(self, name):
    with span(self, name):
        yield
        seen, end = readings(self), time.monotonic() + 60
        while readings(self) < seen + 2 and time.monotonic() < end:
            time.sleep(0.001)
Profiler.span = span_with_a_reading
options = ProfileOptions(threads=1, prompts=("", "Once upon a time"), runs=2, max_tokens=40)
profiler = Profiler(options, root=Path(sys.argv[1]))
profiler.measure()
print(json.dumps(profiler.finish(complete=True), allow_nan=False))
"""
"""However busy the machine, sensors are read in every span: while idle, loaded, at the end."""


@pytest.fixture
def board(tmp_path):
    return make_board(tmp_path / "board")


@pytest.fixture(scope="session")
def record(tmp_path_factory):
    """A complete run on a faked board, as run.json would hold it.

    Of a process of its own: what other tests left in this one's memory, and what of that is freed
    meanwhile, is none of the model's.
    """
    root = make_board(tmp_path_factory.mktemp("board"))
    words = [sys.executable, "-c", PROFILE, str(ROOT), str(root)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="session")
def draft(tmp_path_factory):
    return make_draft(tmp_path_factory.mktemp("draft"))


@pytest.fixture(scope="session")
def typed_draft(tmp_path_factory):
    folder = tmp_path_factory.mktemp("typed")
    return make_draft(folder, target="orin-nano", precision="fp16")
