import json
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner
from dlm_edge.export import pack
from dlm_edge.export.auto import auto
from dlm_edge.export.cli import main

FORECAST = {
    "target": "orin-nano",
    "mode": "25w",
    "tokens_per_nfe": 1.0,
    "graphs": [
        {"graph": "denoise", "dims": {"rows": 4, "context": 8}, "step_ms": 1.25,
         "tokens_per_s": 800.0}
    ],
    "memory": {
        "weights": 1475.2, "kv": 56.0, "activations": 0.0, "context": 160.0, "runtime": 260.0,
        "total": 1951.2, "available": 6000.0,
    },
}  # fmt: skip
REPORT = {
    "forecast": FORECAST,
    "bundle": "x.dlm",
    "sha256": "0" * 64,
    "bytes": 2**20,
    "graphs": {"denoise": {"operators": {"MatMul": 3}}},
    "parity": {
        "denoise": {
            "shapes": [
                {
                    "graph": "denoise",
                    "dims": {"batch": 1, "rows": 4, "context": 8},
                    "against_torch": {"max_relative_error": 1e-6, "top1_agreement": 1.0},
                }
            ]
        }
    },
}


@pytest.fixture(autouse=True)
def _checkpoint(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text("{}")


@pytest.fixture
def asked(monkeypatch):
    calls = []

    def export(checkpoint, output, settings, progress, *, notes=None):
        calls.append((checkpoint, output, settings))
        progress("tracing")
        return REPORT

    monkeypatch.setattr(pack, "export_checkpoint", export)
    return calls


def invoke(*arguments):
    return CliRunner().invoke(main, [str(item) for item in arguments])


def test_options_reach_the_exporter(asked, tmp_path):
    result = invoke(
        tmp_path, "-o", "x.dlm", "--block", "4,8", "--context", "8", "--precision", "fp16",
        "--target", "orin-nano", "--rule", "margin", "--steps", "4", "--temperature", "0.8",
        "--default-block", "8", "--batch", "2", "--seed", "3", "-v",
    )  # fmt: skip
    assert result.exit_code == 0
    ((checkpoint, output, settings),) = asked
    assert (checkpoint, str(output)) == (tmp_path, "x.dlm")
    assert (settings.blocks, settings.contexts, settings.batch) == ((4, 8), (8,), 2)
    assert (settings.precision, settings.target, settings.seed) == ("fp16", "orin-nano", 3)
    expected = {"rule": "margin", "steps": 4, "temperature": 0.8, "block_size": 8}
    assert settings.decoding == expected
    assert not settings.choose_decoding
    assert settings.budget == 0.5
    assert "tracing" in result.stderr
    assert "MatMul 3" in result.stderr
    assert "same top-1 100.00%" in result.stdout


def test_json_is_one_object_on_stdout(asked, tmp_path):
    result = invoke(tmp_path, "-o", "x.dlm", "--json")
    none = {"plans": [], "why": "target cpu runs without TensorRT"}
    assert json.loads(result.stdout) == {**REPORT, "tensorrt": none}


def test_the_default_temperature_is_chosen_where_no_decoding_option_is_given(asked, tmp_path):
    invoke(tmp_path, "-o", "x.dlm")
    invoke(tmp_path, "-o", "x.dlm", "--temperature", "0")
    assert [settings.choose_decoding for _, _, settings in asked] == [True, False]
    assert asked[1][2].decoding == {"temperature": 0.0}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--block", "0"), "'0' is no positive integer"),
        (("--block", "a,4"), "'a'"),
        (("--batch", "0"), "--batch"),
        (("--precision", "int3"), "fp32, fp16, int8 or int4"),
        (("--target", "moon"), "orin-nano"),
        (("--target", "orin-nano", "--power-mode", "60w"), "7w, 15w, 25w, maxn-super"),
        (("--max-memory", "0"), "--max-memory"),
        (("--rule", "treshold"), "did you mean threshold?"),
        (("--rule", "margin", "--threshold", "0.9"), "no effect on rule margin"),
    ],
)
def test_bad_options_are_one_line_and_exit_2(asked, tmp_path, arguments, word):
    result = invoke(tmp_path, "-o", "x.dlm", *arguments)
    assert result.exit_code == 2
    assert word in result.stderr
    assert result.stderr.count("\n") == 1
    assert not asked


def test_a_report_that_could_not_be_written_is_told_before_any_work(asked, tmp_path):
    result = invoke(tmp_path, "-o", "x.dlm", "--report-import", "none/x.json")
    assert result.exit_code == 2
    assert "choose another --report-import" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not asked


def test_targets_are_listed_without_a_checkpoint(asked):
    result = invoke("--target", "list")
    assert result.exit_code == 0
    for word in ("orin-nano-4gb", "maxn-super", "102.4 GB/s", "host", "10.16.2"):
        assert word in result.stdout
    listed = json.loads(invoke("--target", "list", "--json").stdout)
    assert listed["targets"]["orin-nano"]["modes"]["25w"]["gpu_mhz"] == 918.0
    assert {item["version"]: item["l4t"] for item in listed["jetpacks"]}["6.2.1"] == "36.4.4"
    assert "deviceQuery" in invoke("--target", "list", "-v").stdout
    assert not asked


@pytest.mark.parametrize(
    ("arguments", "word"), [(("-o", "x.dlm"), "CHECKPOINT"), (("checkpoint",), "--output")]
)
def test_what_an_export_needs_is_asked_for(asked, arguments, word):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert word in result.stderr
    assert result.stderr.count("\n") == 1


def test_auto_exports_what_it_chose_and_takes_given_options_as_the_only_candidates(
    asked, tmp_path, monkeypatch
):
    seen = []

    def choose(checkpoint, settings, progress, *, precisions):
        seen.append((settings.max_memory_mib, precisions))
        return replace(settings, blocks=(4,)), {"chosen": "this"}

    monkeypatch.setattr(auto, "choose", choose)
    output = tmp_path / "x.dlm"
    assert invoke(tmp_path, "-o", output, "--auto", "--max-memory", "500").exit_code == 0
    assert invoke(tmp_path, "-o", output, "--auto", "--precision", "fp16").exit_code == 0
    assert seen == [(500.0, ()), (None, ("fp16",))]
    assert [settings.blocks for _, _, settings in asked] == [(4,), (4,)]


def test_a_missing_checkpoint_is_one_line_and_exit_1(tmp_path):
    result = invoke(tmp_path / "missing", "-o", tmp_path / "x.dlm")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("none", "-o", "x.dlm"), "none: no checkpoint here"),
        (("old.dlm", "-o", "x.dlm"), "old.dlm is a bundle, not a checkpoint"),
        ((".", "-o", "x.txt"), "must end in .dlm"),
        ((".", "-o", "nowhere/x.dlm"), "choose another -o"),
        ((".", "-o", "x.dlm", "--data", "none.txt"), "'none.txt' does not exist"),
        ((".", "-o", "x.dlm", "--rule", "threshold", "--threshold", "2"), "threshold must be"),
        ((".", "-o", "x.dlm", "--target", "moon"), "orin-nano"),
    ],
)
def test_a_mistake_in_the_command_is_found_without_torch(tmp_path, monkeypatch, arguments, word):
    (tmp_path / "old.dlm").touch()
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "dlm_edge.export.pack")
    result = invoke(*arguments)
    assert word in result.stderr
    assert result.stderr.count("\n") == 1


def test_options_of_calibration_reach_the_exporter(asked, tmp_path):
    for name in ("t.txt", "p.json", "j.bin"):
        (tmp_path / name).touch()
    result = invoke(
        tmp_path, "-o", "x.dlm", "--precision", "int8", "--calibration-data", "t.txt",
        "--max-loss", "0.3 %", "--recipe", "p.json", "--force", "--loss-tokens", "512",
        "--judge", "j.bin", "--report-dir", "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    ((_, _, settings),) = asked
    assert (settings.max_loss, settings.loss_tokens, settings.force) == (0.3, 512, True)
    paths = (settings.calibration_data, settings.recipe, settings.judge, settings.report_dir)
    assert [str(path) for path in paths] == ["t.txt", "p.json", "j.bin", "out"]


@pytest.mark.parametrize("text", ["much", "nan", "inf", ""])
def test_a_loss_that_is_no_number_is_a_usage_error(asked, tmp_path, text):
    result = invoke(tmp_path, "-o", "x.dlm", "--max-loss", text)
    assert result.exit_code == 2
    assert "no number of per cent" in result.stderr
    assert asked == []


FORECAST_LINES = (
    "predicted for orin-nano in mode 25w: 1,951 MiB of 6,000 available = weights 1,475 + "
    "KV cache 56 + CUDA context 160 + runtime 260\n"
    "predicted for denoise, rows 4, context 8: 1.25 ms per run, 800 tokens/s at 1 token per run\n"
)


def test_an_export_for_a_board_shows_its_forecast_and_the_next_command(asked, tmp_path):
    result = invoke(tmp_path, "-o", "x.dlm", "--target", "orin-nano")
    assert FORECAST_LINES in result.stdout
    assert result.stdout.endswith(
        "next: dlm-run x.dlm --build makes TensorRT's plans on the machine\n"
    )
    assert "tensorrt" not in result.stderr


def test_a_dry_run_shows_the_forecast_and_exports_nothing(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "forecast_checkpoint", lambda *_: FORECAST)
    result = invoke(tmp_path, "--target", "orin-nano", "--dry-run")
    assert (result.exit_code, result.stdout) == (0, FORECAST_LINES)
    assert json.loads(invoke(tmp_path, "--dry-run", "--json").stdout) == FORECAST
    assert not asked


def test_what_was_lost_is_printed(monkeypatch, tmp_path):
    quality = {
        "verdict": "int8 keeps.",
        "findings": ["int8 changes perplexity by +0.1 %."],
        "warnings": ["Beyond."],
    }
    report = {**REPORT, "quality": quality, "report_dir": "x.report"}
    monkeypatch.setattr(pack, "export_checkpoint", lambda *args, **more: report)
    result = invoke(tmp_path, "-o", "x.dlm", "--precision", "int8")
    assert "int8 keeps.\nint8 changes perplexity by +0.1 %.\n" in result.stdout
    assert "Beyond." in result.stdout
    assert "x.report/report.html" in result.stdout
