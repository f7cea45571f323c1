"""The commands of a model's way to the device, on one of next to no size."""

import json

import pytest
from click.testing import CliRunner
from dlm_edge.benchmarks import qwen_scale
from dlm_edge.runtime.errors import DlmError
from public_folders import tokenizer_without_mask

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "num_key_value_heads": 2,
}


def test_every_step_is_run_and_measured(tmp_path, monkeypatch):
    source = tmp_path / "tokenizer"
    source.mkdir()
    (source / "tokenizer.json").write_text(tokenizer_without_mask(), encoding="utf-8")
    eos = {"eos_token": "<|endoftext|>"}
    (source / "tokenizer_config.json").write_text(json.dumps(eos), encoding="utf-8")
    monkeypatch.setitem(qwen_scale.SHAPES, "0.5b", SHAPE)
    monkeypatch.setitem(qwen_scale.COMMON, "vocab_size", 260)
    out = tmp_path / "figures.json"
    asked = ["--tokenizer", str(source), "--work", str(tmp_path / "work"), "--context", "32"]
    result = CliRunner().invoke(
        qwen_scale.main, [*asked, "--steps", "fp16:cpu", "--json", str(out)]
    )
    assert result.exit_code == 0, result.output
    steps = json.loads(out.read_text())["steps"]
    assert [step["what"] for step in steps] == ["convert", "export fp16:cpu", "run fp16:cpu"]
    assert all(step["cpu_s"] > 0 and step["peak_mib"] > 20 for step in steps)
    assert "draft_verify" in steps[-1]["output"][-1]
    assert str(tmp_path) not in out.read_text()


def test_a_step_that_fails_ends_the_run_with_its_last_line():
    with pytest.raises(DlmError, match="trial ended with status 3: no luck"):
        qwen_scale.measured("trial", ["-c", "print('no luck'); raise SystemExit(3)"])
