"""A board's files, one short run of the model that ships, traced block steps; each made once."""

import json

import pytest
from dlm_edge.jetson.profile import Profiler
from dlm_edge.jetson.profile_options import ProfileOptions
from fake_board import make_board
from untrained_draft import make_draft


@pytest.fixture
def board(tmp_path):
    return make_board(tmp_path / "board")


@pytest.fixture(scope="session")
def record(tmp_path_factory):
    """A complete run on a faked board, as run.json would hold it."""
    root = make_board(tmp_path_factory.mktemp("board"))
    profiler = Profiler(
        ProfileOptions(threads=1, prompts=("", "Once upon a time"), runs=2, max_tokens=40),
        root=root,
    )
    profiler.measure()
    return json.loads(json.dumps(profiler.finish(complete=True), allow_nan=False))


@pytest.fixture(scope="session")
def draft(tmp_path_factory):
    return make_draft(tmp_path_factory.mktemp("draft"))


@pytest.fixture(scope="session")
def typed_draft(tmp_path_factory):
    folder = tmp_path_factory.mktemp("typed")
    return make_draft(folder, target="orin-nano", precision="fp16")
