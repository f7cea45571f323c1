from dataclasses import replace

import pytest
from dlm_edge.export.auto import auto
from dlm_edge.export.auto.auto import choose
from dlm_edge.export.auto.candidates import Candidate
from dlm_edge.export.settings import ExportSettings
from dlm_edge.runtime.errors import CalibrationError, ConfigError

BASE = Candidate(
    precision="fp32",
    block=4,
    blocks=(4,),
    contexts=(16,),
    perplexity=10.0,
    loss_percent=0.0,
    tokens_per_nfe=1.0,
    tokens_per_s=100.0,
    memory_mib=50.0,
    fits=True,
)


@pytest.fixture
def offered(monkeypatch):
    """Stands in for making and measuring: per precision, its candidates, or what it raises."""
    table = {}

    def candidates(path, settings, progress):
        found = table.get(settings.precision, [])
        if isinstance(found, Exception):
            raise found
        return [replace(item, precision=settings.precision) for item in found]

    monkeypatch.setattr(auto, "find_candidates", candidates)
    return table


def pick(tmp_path, settings=None, **options):
    lines = []
    given = settings or ExportSettings(target="orin-nano", max_loss=5.0)
    return *choose(tmp_path, given, lines.append, **options), lines


def test_the_fastest_candidate_within_the_budgets_is_taken(offered, tmp_path):
    offered["fp32"] = [
        BASE,
        replace(BASE, block=8, blocks=(8,), tokens_per_s=120.0, perplexity=10.4),
    ]
    offered["fp16"] = [replace(BASE, tokens_per_s=150.0, perplexity=10.6)]
    settings, report, _ = pick(tmp_path)
    assert (settings.precision, settings.blocks, settings.contexts) == ("fp32", (8,), (16,))
    assert [item["fits"] for item in report["candidates"]] == [True, True, False]
    assert report["candidates"][2]["loss_percent"] == pytest.approx(6.0)
    assert report["chosen"]["block"] == 8


def test_memory_decides_where_it_is_short(offered, tmp_path):
    offered["fp32"] = [replace(BASE, fits=False), replace(BASE, tokens_per_s=1.0)]
    assert pick(tmp_path)[1]["chosen"]["tokens_per_s"] == 1.0


def test_nothing_that_fits_is_an_error_that_names_the_budgets(offered, tmp_path):
    offered["fp32"] = [replace(BASE, fits=False)]
    with pytest.raises(ConfigError, match="needs 50 MiB") as caught:
        pick(tmp_path)
    assert "--max-memory" in str(caught.value)
    assert "--max-loss" in str(caught.value)


def test_a_precision_that_cannot_be_made_is_left_out_with_a_line(offered, tmp_path):
    offered["fp32"] = [BASE]
    offered["int8"] = CalibrationError("no text")
    settings, _, lines = pick(tmp_path)
    assert settings.precision == "fp32"
    assert "auto: int8 is left out: no text" in lines
    with pytest.raises(CalibrationError, match="no text"):
        pick(tmp_path, precisions=("int8",))


def test_no_precision_that_can_be_made_is_one_error_with_all_reasons(offered, tmp_path):
    offered["int8"] = CalibrationError("no text to calibrate on")
    offered["fp16"] = CalibrationError("a weight is too large")
    with pytest.raises(ConfigError, match=r"int8 \(no text .*; fp16 \(a weight"):
        pick(tmp_path, precisions=("int8", "fp16"))


def test_token_by_token_models_keep_the_blocks_of_their_prefill(offered, tmp_path):
    offered["fp32"] = [replace(BASE, block=None, blocks=(8,))]
    given = ExportSettings(target="orin-nano", blocks=(8,))
    assert pick(tmp_path, given)[0].blocks == (8,)


@pytest.mark.slow
def test_a_real_checkpoint_is_made_decoded_scored_and_chosen_from(checkpoint):
    given = ExportSettings(target="orin-nano", max_loss=90.0)
    chosen, report = choose(checkpoint, given, lambda line: None, precisions=("fp16",))
    assert (chosen.precision, chosen.blocks) == ("fp16", (4,))
    (found,) = report["candidates"]
    assert 0 < found["tokens_per_nfe"] <= 4
    assert found["perplexity"] > 1
    assert found["tokens_per_s"] > 0
