import json

import pytest
from click.testing import CliRunner
from dlm_edge.export import pack
from dlm_edge.export.cli import main

REPORT = {
    "bundle": "x.dlm",
    "sha256": "0" * 64,
    "bytes": 2**20,
    "graphs": {"denoise": {"operators": {"MatMul": 3}}},
    "parity": {
        "denoise": {
            "shapes": [
                {
                    "graph": "denoise",
                    "block": 4,
                    "context": 8,
                    "against_torch": {"max_relative_error": 1e-6, "top1_agreement": 1.0},
                }
            ]
        }
    },
}


@pytest.fixture
def asked(monkeypatch):
    calls = []

    def export(checkpoint, output, settings, progress):
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
        "--target", "orin-nano", "--decoding", '{"rule": "margin"}', "--seed", "3", "-v",
    )  # fmt: skip
    assert result.exit_code == 0
    ((checkpoint, output, settings),) = asked
    assert (checkpoint, str(output)) == (tmp_path, "x.dlm")
    assert (settings.blocks, settings.contexts) == ((4, 8), (8,))
    assert (settings.precision, settings.target, settings.seed) == ("fp16", "orin-nano", 3)
    assert settings.decoding == {"rule": "margin"}
    assert "tracing" in result.stderr
    assert "MatMul 3" in result.stderr
    assert "same top-1 100.00%" in result.stdout


def test_json_is_one_object_on_stdout(asked, tmp_path):
    result = invoke(tmp_path, "-o", "x.dlm", "--json")
    none = {"plans": [], "why": "target cpu runs without TensorRT"}
    assert json.loads(result.stdout) == {**REPORT, "tensorrt": none}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--block", "0"), "'0' is no positive integer"),
        (("--block", "a,4"), "'a'"),
        (("--precision", "int8"), "fp32 or fp16"),
        (("--target", "moon"), "orin-nano"),
        (("--decoding", "[1]"), "JSON object"),
        (("--decoding", "{"), "JSON object"),
        (("--decoding", '{"rule": "x"}'), "rule 'x'"),
    ],
)
def test_bad_options_are_one_line_and_exit_2(asked, tmp_path, arguments, word):
    result = invoke(tmp_path, "-o", "x.dlm", *arguments)
    assert result.exit_code == 2
    assert word in result.stderr
    assert result.stderr.count("\n") == 1
    assert not asked


def test_a_missing_checkpoint_is_one_line_and_exit_1(tmp_path):
    result = invoke(tmp_path / "missing", "-o", tmp_path / "x.dlm")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
