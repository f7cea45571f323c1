"""What `--auto` may choose from, and what it takes of the memory."""

import pytest
from dlm_edge.export.auto import candidates
from dlm_edge.export.auto.auto import choose
from dlm_edge.export.auto.offers import Offer, memory_of, offers_of, shipped
from dlm_edge.export.pack import export_checkpoint
from dlm_edge.export.settings import ExportSettings
from dlm_edge.export.source import load_source
from dlm_edge.jetson.forecast.forecast import forecast_memory
from dlm_edge.runtime.bundle.bundle import open_bundle
from dlm_edge.runtime.errors import ConfigError
from tiny_checkpoint import make_checkpoint


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A checkpoint that has learnt two block sizes, and its bundle of all shapes."""
    folder = tmp_path_factory.mktemp("offers")
    make_checkpoint(folder / "checkpoint", block_sizes="4,8,full")
    settings = ExportSettings(target="host", blocks=(4, 8), contexts=(8, 16))
    export_checkpoint(folder / "checkpoint", folder / "all.dlm", settings, lambda line: None)
    source = load_source(folder / "checkpoint", settings)
    return folder, open_bundle(folder / "all.dlm"), source


def test_every_learnt_block_comes_with_its_contexts_the_longest_first(exported):
    _, bundle, _ = exported
    found = offers_of(bundle, ExportSettings(target="host", blocks=(4, 8)))
    assert found == [
        Offer(block=block, blocks=(block,), contexts=contexts)
        for block in (4, 8)
        for contexts in ((8, 16), (8,))
    ]


def test_contexts_and_blocks_that_the_user_gave_are_not_cut(exported):
    _, bundle, _ = exported
    given = ExportSettings(target="host", blocks=(8,), contexts=(8, 16))
    assert offers_of(bundle, given, cut=False) == [Offer(block=8, blocks=(8,), contexts=(8, 16))]


def test_memory_is_that_of_the_bundle_that_would_ship(exported):
    folder, bundle, source = exported
    settings = ExportSettings(target="host", blocks=(4,), contexts=(8,))
    export_checkpoint(folder / "checkpoint", folder / "one.dlm", settings, lambda line: None)
    alone = open_bundle(folder / "one.dlm")
    restricted = shipped(bundle, source.graphs, (4,), (8,)).manifest.graphs
    assert {s.key for s in restricted} == {s.key for s in alone.manifest.graphs}
    found = memory_of(bundle, source.graphs, "host", (4,), (8,))
    wanted = forecast_memory(alone, "host")
    assert found.parts == pytest.approx(wanted.parts)
    assert found.total < forecast_memory(bundle, "host").total


@pytest.fixture(scope="module")
def canvases(tmp_path_factory):
    """A score model over canvases of two lengths."""
    folder = tmp_path_factory.mktemp("canvases") / "checkpoint"
    make_checkpoint(
        folder, "sedd", scale=2.0, graph="absorb", mask_token_id=1, block_sizes="8,full"
    )
    return folder


@pytest.mark.slow
def test_without_a_cache_all_lengths_stay_unless_memory_is_short(canvases):
    given = ExportSettings(target="orin-nano", max_loss=90.0)
    settings, report = choose(canvases, given, lambda line: None, precisions=("fp16",))
    assert settings.blocks == (8, 16)
    (whole,) = report["candidates"]
    assert (whole["block"], whole["contexts"]) == (16, ())
    short = ExportSettings(
        target="orin-nano", max_loss=90.0, max_memory_mib=whole["memory_mib"] - 1e-4
    )
    settings, report = choose(canvases, short, lambda line: None, precisions=("fp16",))
    assert settings.blocks == (8,)
    assert report["chosen"]["memory_mib"] < short.max_memory_mib


@pytest.mark.slow
def test_a_shorter_context_is_taken_where_memory_is_short(exported, monkeypatch):
    monkeypatch.setattr(candidates, "_buckets", lambda source: (8, 16))
    checkpoint = exported[0] / "checkpoint"

    def pick(**options):
        settings = ExportSettings(target="orin-nano", max_loss=99.0, blocks=(4,), **options)
        return choose(checkpoint, settings, lambda line: None, precisions=("fp16",))[1]["chosen"]

    free = pick()
    assert max(free["contexts"]) == 16
    short = pick(max_memory_mib=free["memory_mib"] - 1e-4)
    assert short["contexts"] == (8,)
    assert short["memory_mib"] < free["memory_mib"]
    # Contexts that were asked for are shipped or refused, not cut.
    with pytest.raises(ConfigError, match="--max-memory"):
        pick(contexts=(8, 16), max_memory_mib=free["memory_mib"] - 1e-4)
