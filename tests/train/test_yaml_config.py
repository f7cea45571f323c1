"""`dlm-train --config`: options of a file, what is typed before them, unknown ones refused."""

import json

import pytest
from click.testing import CliRunner
from dlm_edge.train.cli import main

TEXT = "<|endoftext|>".join(["the cat sat on the mat. " * 8] * 12)


def run(tmp_path, yaml: str, *arguments: str):
    (tmp_path / "run.yaml").write_text(yaml)
    return CliRunner().invoke(main, ["--config", str(tmp_path / "run.yaml"), *arguments])


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.mark.parametrize("family", ["mdlm", "ar", "sedd", "tidar", "dimba"])
def test_every_family_trains_from_a_file(tmp_path, text, family):
    blocks = "[8, full]" if family in ("mdlm", "sedd", "dimba") else "null"
    yaml = f"""
        family: {family}
        data: {text}
        out: {tmp_path / "out"}
        tokenizer: char
        dim: 32
        layers: 1
        heads: 2
        block-size: {blocks}
        context: 16
        batch_size: 4
        max-steps: 2
        eval-every: 0
        eval-rows: 2
        log: none
        threads: 1
        cache-dir: {tmp_path / "cache"}
    """.replace("        ", "")
    found = run(tmp_path, yaml, "--lr", "0.001")
    assert found.exit_code == 0, found.output
    saved = json.loads((tmp_path / "out" / "train.json").read_text())
    assert (saved["family"], saved["context"], saved["max_steps"]) == (family, 16, 2)
    assert saved["lr"] == 0.001
    assert saved["options"]["dim"] == 32


def test_what_is_typed_goes_before_the_file(tmp_path, text):
    yaml = f"data: {text}\nfamily: nothing\nlr: -1\n"
    found = run(tmp_path, yaml, "--family", "mdlm", "--out", str(tmp_path / "out"))
    assert found.exit_code == 2
    assert "--lr must be above 0" in found.output, "the family typed is known, the rate is not"


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("famly: mdlm", "famly is no option of dlm-train; did you mean family?"),
        ("model:\n  dim: 32", "model is no option"),
        ("dim:\n  size: 32", "dim must be a single value"),
        ("- mdlm", "wanted lines such as family: mdlm"),
        ("a: [", "cannot be read"),
        ("dim: wide", "'wide' is not a valid integer"),
        ("config: other.yaml", "config is no option"),
    ],
)
def test_what_a_file_cannot_say_is_refused_in_one_line(tmp_path, yaml, message):
    found = run(tmp_path, yaml)
    assert found.exit_code == 2
    assert message in found.output
    assert "Traceback" not in found.output


def test_a_missing_file_is_one_line(tmp_path):
    found = CliRunner().invoke(main, ["--config", str(tmp_path / "no.yaml")])
    assert found.exit_code == 2
    assert "no.yaml" in found.output
