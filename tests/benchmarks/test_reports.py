import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from dlm_edge.benchmarks import cold_start
from dlm_edge.benchmarks.cold_start import measure_process
from dlm_edge.benchmarks.contestants import override
from dlm_edge.benchmarks.decode import resume
from dlm_edge.benchmarks.decode_report import agreement, summarise
from dlm_edge.benchmarks.report import record, table, write_json
from dlm_edge.runtime.errors import ConfigError, DlmError


def round_of(ours: float, eager: float) -> dict:
    own = {"seconds": ours, "token_ids": [5, 6], "nfe": 1, "outside": 0.1}
    other = {"seconds": eager, "token_ids": [5, 6], "nfe": 4}
    return {"threads": 1, "results": {"ours": own, "eager": other}}


def test_ratios_are_medians_of_ratios_within_rounds() -> None:
    rounds = [round_of(1.0, 10.0), round_of(2.0, 10.0), round_of(1.0, 12.0)]
    ours, eager = summarise(rounds, 1)
    assert ours["tokens_per_s"] == 2.0
    assert eager["ratio"] == 10.0
    assert eager["ratio_range"] == (5.0, pytest.approx(12.0))
    assert eager["ms_per_nfe"] == 2500.0
    assert summarise(rounds, 2) == []


def test_agreement_counts_equal_tokens_at_equal_places() -> None:
    assert agreement([5, 6, 7, 8], [5, 7, 6, 8]) == 0.5


def test_temperature_0_drops_what_has_no_effect_there() -> None:
    settings = {"rule": "threshold", "temperature": 1.0, "top_p": 0.9}
    assert override(settings, {"temperature": 0.0}) == {"rule": "threshold", "temperature": 0.0}
    assert override(settings, {}) == settings


def test_tables_format_figures_intervals_and_gaps() -> None:
    lines = table([("a", "x"), ("b", "y")], [{"x": 1.23456, "y": (1.0, 2.0)}, {"x": None}])
    assert lines.splitlines()[2:] == ["| 1.235 | 1..2 |", "| -     | -    |"]


def test_records_hide_folders_and_results_replace_whole_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/decode.py", "/home/me/m.dlm", "human=/home/me/h.txt"])
    found = record()
    assert found["command"] == ["decode", "m.dlm", "human=h.txt"]
    write_json(tmp_path / "new" / "r.json", found)
    assert json.loads((tmp_path / "new" / "r.json").read_text("utf-8")) == found
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "r.json"]


SAYS_MORE_ONCE_TOLD = """
import sys, time
from pathlib import Path
print("a", flush=True)
end = time.monotonic() + 600
while not Path(sys.argv[1]).exists() and time.monotonic() < end:
    time.sleep(0.01)
print("b")
"""


def test_a_process_is_timed_to_its_first_byte_and_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def clock() -> float:
        if len(asked) == 1:  # the first byte is there: now it may go on
            (tmp_path / "told").touch()
        asked.append((tmp_path / "told").exists())
        return 10.0 + len(asked) ** 2

    monkeypatch.setattr(cold_start, "time", SimpleNamespace(perf_counter=clock))
    code = [sys.executable, "-c", SAYS_MORE_ONCE_TOLD, str(tmp_path / "told")]
    found = measure_process(code)
    assert asked == [False, True, True]
    assert (found["first_s"], found["total_s"]) == (3.0, 8.0)
    assert found["peak_mib"] > 1
    with pytest.raises(DlmError, match="status 3"):
        measure_process([sys.executable, "-c", "raise SystemExit(3)"])


def test_only_an_interrupted_run_with_equal_settings_goes_on(tmp_path: Path) -> None:
    out, key = tmp_path / "d.json", {"ours": 1}
    assert resume(out, key)["rounds"] == []
    out.write_text(json.dumps({"key": key, "rounds": [1]}))
    assert resume(out, key)["rounds"] == [1]
    with pytest.raises(ConfigError, match="remove it"):
        resume(out, {"ours": 2})
    out.write_text(json.dumps({"key": key, "rounds": [1], "complete": True}))
    assert resume(out, key)["rounds"] == []
