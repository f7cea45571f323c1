"""The processes that decode beside llama.cpp, on a bundle alone."""

import json

import pytest
from click.testing import CliRunner
from dlm_edge.benchmarks.beside_llama_cpp import main


@pytest.mark.slow
def test_a_causal_bundle_is_measured_in_processes_of_its_own(tmp_path):
    from dlm_edge.export.pack import ExportSettings, export_checkpoint
    from tiny_checkpoint import make_checkpoint

    make_checkpoint(tmp_path / "checkpoint", "ar")
    bundle, out = tmp_path / "tiny.dlm", tmp_path / "out.json"
    export_checkpoint(tmp_path / "checkpoint", bundle, ExportSettings())
    sizes = ["--rounds", "1", "--threads", "1", "--prompt", "20", "--tokens", "4"]
    result = CliRunner().invoke(main, [str(bundle), *sizes, "--out", str(out)])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(out.read_text())["rows"]
    assert row["generated"] == 3
    assert min(row["generate_tps"], row["prompt_tps"], row["first_s"], row["peak_mib"]) > 0


def test_prompts_need_the_tokenizer_of_a_bundle(tmp_path):
    (tmp_path / "a.gguf").touch()
    result = CliRunner().invoke(main, [str(tmp_path / "a.gguf")])
    assert result.exit_code == 2
    assert "name at least one bundle" in result.stderr
