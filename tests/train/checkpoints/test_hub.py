"""Checkpoints by hub name, over a cache laid out as the hub's client lays it out; no network."""

import shutil

import huggingface_hub.constants as hub_constants
import pytest
from dlm_edge.runtime.errors import CheckpointError
from dlm_edge.train.checkpoints.convert import open_any
from dlm_edge.train.checkpoints.hub import checkpoint_folder
from dlm_edge.train.pretrained import Pipeline
from tiny_checkpoint import make_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A hub cache that holds someone/stories, and no network."""
    cache = tmp_path / "hub"
    repository = cache / "models--someone--stories"
    folder = tmp_path / "made"
    make_checkpoint(folder)
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize(
    "name", ["someone/stories", "hf:someone/stories", f"someone/stories@{COMMIT}"]
)
def test_a_name_of_the_hub_reads_as_its_folder_does(cached, name):
    found, wanted = open_any(name), open_any(cached)
    assert found.config == wanted.config
    assert found.weights.keys() == wanted.weights.keys()
    assert found.tokenizer_json == wanted.tokenizer_json


def test_a_folder_wins_over_the_hub_unless_the_prefix_says_otherwise(cached, tmp_path):
    own = tmp_path / "someone" / "stories"
    own.mkdir(parents=True)
    assert checkpoint_folder("someone/stories").resolve() == own
    assert checkpoint_folder("hf:someone/stories").name == COMMIT


@pytest.mark.parametrize("name", ["someone/other", "hf:someone/other", "someone/stories@nonesuch"])
def test_what_the_hub_has_not_is_one_line_with_the_name(cached, name):
    with pytest.raises(CheckpointError) as caught:
        checkpoint_folder(name)
    assert name.removeprefix("hf:").partition("@")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_are_paths_and_odd_names_are_named(tmp_path):
    assert checkpoint_folder(tmp_path / "nowhere") == tmp_path / "nowhere"
    assert str(checkpoint_folder("./someone/stories")) == "someone/stories"
    with pytest.raises(CheckpointError, match="hf:owner/name"):
        checkpoint_folder("hf:stories")


def test_a_pipeline_is_opened_by_the_name_of_its_checkpoint(cached):
    with Pipeline.from_pretrained("someone/stories", threads=1) as pipeline:
        named = pipeline.generate("once", max_tokens=4, seed=1).result().text
    with Pipeline.from_pretrained(cached, threads=1) as pipeline:
        assert pipeline.generate("once", max_tokens=4, seed=1).result().text == named
