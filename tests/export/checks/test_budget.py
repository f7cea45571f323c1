from dataclasses import replace

import pytest
from dlm_edge.export.checks import budget
from dlm_edge.export.checks.budget import check_budget, forecast_lines
from dlm_edge.export.pack import with_batch
from dlm_edge.export.settings import ExportSettings
from dlm_edge.jetson.forecast.forecast import forecast_bundle
from dlm_edge.jetson.targets import target
from dlm_edge.runtime.bundle.bundle import default_bundle_path, open_bundle
from dlm_edge.runtime.errors import ConfigError
from toy_bundle import write_toy


@pytest.fixture
def toy(tmp_path):
    return open_bundle(write_toy(tmp_path))


def test_on_a_board_the_whole_plan_goes_into_the_report(toy):
    lines = []
    settings = ExportSettings(target="orin-nano", mode="15W")
    forecast = check_budget(toy, settings, lines.append)
    assert (forecast["target"], forecast["mode"], len(forecast["graphs"])) == (
        "orin-nano",
        "15w",
        2,
    )
    assert "made for cpu, not for orin-nano" in lines[0]


def test_a_batch_that_makes_fewer_tokens_than_one_text_at_a_time_is_warned_of(toy):
    settings, lines = ExportSettings(target="orin-nano", mode="15W"), []
    bundle = with_batch(toy, 2)
    shapes = check_budget(bundle, settings, lines.append)["graphs"]
    alone, together = (
        [s["tokens_per_s"] for s in shapes if s["dims"]["batch"] == n] for n in (1, 2)
    )
    # One run serves both texts, and reads each weight once.
    assert all(one < both <= 2 * one for one, both in zip(alone, together, strict=True))
    assert not [line for line in lines if "--batch" in line]
    forecast = forecast_bundle(bundle, "orin-nano", "15w", tokens_per_nfe=1.0)
    slow = {
        key: replace(part, tokens_per_s=part.tokens_per_s / (4 if part.dims["batch"] > 1 else 1))
        for key, part in forecast.graphs.items()
    }
    found = list(budget.batches_that_lose(bundle.manifest, replace(forecast, graphs=slow)))
    assert len(found) == len(together)
    assert all("fewer than one text at a time" in line for line in found)


def test_on_a_cpu_only_memory_is_planned(toy):
    forecast = check_budget(toy, ExportSettings(target="cpu"), lambda line: None)
    assert set(forecast) == {"target", "memory"}
    assert forecast["memory"]["total"] > forecast["memory"]["weights"] > 0


def test_a_bundle_that_cannot_fit_is_refused_before_anything_is_checked(toy, monkeypatch):
    tiny = replace(target("orin-nano"), memory_mib=600)
    monkeypatch.setattr(budget, "find_target", lambda name: tiny)
    with pytest.raises(ConfigError, match=r"on orin-nano, which has 81 free: runtime alone"):
        check_budget(toy, ExportSettings(target="orin-nano"), lambda line: None)


def test_the_users_own_limit_is_held(toy):
    settings = ExportSettings(target="cpu", max_memory_mib=20.0)
    with pytest.raises(ConfigError, match="--max-memory allows 20: runtime alone"):
        check_budget(toy, settings, lambda line: None)


def test_unknown_targets_and_modes_are_refused_before_any_work():
    with pytest.raises(ConfigError, match="orin-nano, orin-nano-4gb, orin-nx"):
        ExportSettings(target="moon")
    with pytest.raises(ConfigError, match="7w, 15w, 25w, maxn-super"):
        ExportSettings(target="orin-nano", mode="9000w")


def test_the_forecast_of_a_board_is_said_in_lines():
    bundle = open_bundle(default_bundle_path())
    forecast = forecast_bundle(bundle, "orin-nano", None, tokens_per_nfe=1.0)
    lines = forecast_lines(forecast.to_json())
    assert lines[0].startswith("predicted for orin-nano in mode 25w: ")
    assert len(lines) == 1 + len(forecast.graphs)
    assert "ms per run" in lines[1]
