"""Bundles of a server: opened on first use, closed for memory, replaced and removed files."""

import shutil
import threading
from pathlib import Path

import pytest
from dlm_edge.runtime.errors import BundleError
from dlm_edge.runtime.pipeline import Pipeline
from dlm_edge.runtime.serve import models as models_module
from served import served
from waiting import wait


@pytest.fixture
def paths(make_bundle, tmp_path):
    copies = [tmp_path / f"{name}.dlm" for name in ("one", "two")]
    for path in copies:
        shutil.copy(make_bundle(), path)
    return copies


def text(server, model):
    return server.complete(model=model, prompt="The ", max_tokens=7)["choices"][0]["text"]


def loaded(server):
    names = ("one", "two")
    return [name for name in names if server.ask(f"/v1/models/{name}")[2]["loaded"]]


def test_a_bundle_is_opened_when_it_is_first_asked_for(paths):
    with served(*paths) as server:
        assert loaded(server) == ["one"]
        assert text(server, "two") == "cat sat"
        assert loaded(server) == ["one", "two"]


def test_the_least_used_bundle_is_closed_where_memory_is_short(paths, monkeypatch):
    free = {"MemAvailable": 1e6}
    monkeypatch.setattr(models_module, "read_meminfo", lambda: free)
    with served(*paths) as server:
        free["MemAvailable"] = 0.0
        assert text(server, "two") == "cat sat"
        assert loaded(server) == ["two"]
        assert any("one: closed, because two needs" in line for line in server.notes)
        assert text(server, "one") == "cat sat"
        assert loaded(server) == ["one"]


def test_the_open_bundle_goes_on_where_its_file_was_replaced_and_says_so_once(paths, make_bundle):
    with served(*paths) as server:
        paths[0].unlink()
        shutil.copy(make_bundle(end_at=3), paths[0])
        assert text(server, "one") == text(server, "one") == "cat sat"
        assert len([line for line in server.notes if "was replaced" in line]) == 1


def test_a_bundle_that_is_gone_goes_on_if_it_is_open_and_else_is_an_error(paths):
    with served(*paths) as server:
        for path in paths:
            path.unlink()
        assert text(server, "one") == "cat sat"
        status, _, answer = server.ask("/v1/completions", {"model": "two", "prompt": "x"})
        assert status == 503
        assert str(paths[1].parent) not in answer["error"]["message"]
        assert any("cannot open the bundle" in line for line in server.notes)
        assert server.ask("/v1/models/one")[2]["loaded"]


def test_a_client_that_goes_away_does_not_end_the_opening_of_a_bundle(paths, monkeypatch):
    opening, hold = threading.Event(), threading.Event()
    load = Pipeline.load

    def slow(path, **options):
        if path == paths[1]:
            opening.set()
            hold.wait()
        return load(path, **options)

    with served(*paths) as server:
        monkeypatch.setattr(Pipeline, "load", slow)
        with pytest.raises(TimeoutError):
            server.ask("/v1/completions", {"model": "two", "prompt": "x"}, timeout=0.2)
        opening.wait()
        hold.set()
        wait(lambda: loaded(server) == ["one", "two"])
        assert text(server, "two") == text(server, "one") == "cat sat"


def test_two_bundles_of_one_name_are_refused(paths, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    copy = Path(shutil.copy(paths[0], other / "one.dlm"))
    with pytest.raises(BundleError, match="two bundles are called one"), served(paths[0], copy):
        pass
