"""What can go wrong with calibration, from the command line: one line each, and nothing written."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from dlm_edge.calibration import quantise, recording
from dlm_edge.export import pack, source
from dlm_edge.export.cli import main
from dlm_edge.runtime.bundle.bundle import open_bundle
from reports import report_of
from safetensors.torch import load_file, save_file
from tiny_checkpoint import make_checkpoint

SIZES = {"--block": 4, "--context": 16, "--loss-tokens": 200}
pytestmark = pytest.mark.usefixtures("few_measurements")
NORM = "trunk.layers.1.mlp_norm.weight"


def export(checkpoint, folder, *options, precision="int8", target="orin-nano"):
    """Runs the command; gives its exit code, its errors, and what stands in the folder then."""
    sizes = [item for pair in SIZES.items() if pair[0] not in options for item in pair]
    result = CliRunner().invoke(
        main,
        [str(item) for item in (
            checkpoint, "-o", folder / "x.dlm", "--precision", precision, "--target", target,
            *sizes, *options,
        )],
    )  # fmt: skip
    errors = [line for line in result.stderr.splitlines() if line.startswith(("Error", "dlm-"))]
    return result.exit_code, errors, sorted(item.name for item in folder.iterdir())


def refused(outcome, *words):
    code, errors, left = outcome
    assert code == 1
    assert len(errors) == 1, errors
    for word in words:
        assert word in errors[0]
    assert left == []


def changed(folder, name, change):
    """A sound checkpoint with one weight changed."""
    make_checkpoint(folder, scale=1.0, tie_embeddings=True)
    weights = load_file(folder / "model.safetensors")
    (key,) = [item for item in weights if item.endswith(name)]
    weights[key] = change(weights[key])
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def test_no_calibration_text_is_said_before_weights_are_read(small, out, monkeypatch):
    monkeypatch.setattr(source, "open_any", None)
    refused(export(small, out), "--calibration-data FILE")
    file = out.parent / "public.gguf"
    file.write_bytes(b"")
    for precision in ("int8", "int4"):
        outcome = export(file, out, precision=precision, target="cpu")
        refused(outcome, f"--precision {precision} needs --calibration-data FILE")


def test_no_calibration_prompts(traced_before, small, out, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    refused(export(small, out, "--calibration-data", tmp_path / "empty.txt"), "empty.txt")


def test_prompts_shorter_than_a_block(traced_before, small, out, tmp_path):
    (tmp_path / "short.txt").write_text("<|endoftext|>".join("ab" for _ in range(80)))
    outcome = export(small, out, "--calibration-data", tmp_path / "short.txt")
    refused(outcome, "fewer than a block of 4", "give longer texts")


def test_constant_activations_name_the_layer_and_the_way_out(text, out, tmp_path):
    dead = changed(tmp_path / "dead", NORM, torch.zeros_like)
    outcome = export(dead, out, "--calibration-data", text)
    refused(outcome, "trunk.layers.1.mlp.gate_up", "are 0 everywhere", '"float"')


@pytest.mark.parametrize("target", ["cpu", "orin-nano"])
def test_infinity_names_the_layer_on_every_target(text, out, tmp_path, target):
    huge = changed(tmp_path / "huge", "trunk.layers.1.mlp.gate_up.weight", lambda w: w * 1e25)
    outcome = export(huge, out, "--calibration-data", text, target=target)
    refused(outcome, "layer trunk.layers.1.mlp.down is NaN or infinity", "take an earlier")


def test_nan_names_the_layer_before_attention(text, out, tmp_path):
    huge = changed(tmp_path / "huge", "trunk.layers.0.attention.qkv.weight", lambda w: w * 1e25)
    refused(
        export(huge, out, "--calibration-data", text, precision="fp16"),
        "trunk.layers.0.attention.out is NaN or infinity",
    )


def test_a_budget_that_cannot_be_met_says_the_best_and_writes_only_by_force(
    traced_before, small, text, out, monkeypatch
):
    honest = quantise.Examiner.ratios

    def worse(self, totals, other=None):
        found = honest(self, totals, other)
        if other is not None or totals is self.totals:
            return found
        return {
            block: type(ratio)(value=1.1, low=1.09, high=1.11, block=block)
            for block, ratio in found.items()
        }

    monkeypatch.setattr(quantise.Examiner, "ratios", worse)
    outcome = export(small, out, "--calibration-data", text, "--max-loss", "0.5 %")
    refused(
        outcome, "--max-loss 0.5 cannot be met", "loses 10.00 %", "up to 11.00 %", "at blocks of",
        "--force",
    )  # fmt: skip
    code, errors, left = export(small, out, "--calibration-data", text, "--force")
    assert (code, errors, left) == (0, [], ["x.dlm", "x.report"])
    assert any(
        "--force" in line for line in report_of(open_bundle(out / "x.dlm"))["quality"]["warnings"]
    )


def test_an_edited_recipe_with_unknown_tensors(
    traced_before, small, text, out, tmp_path, monkeypatch
):
    recipe = {"version": 1, "graphs": {"denoise": {"layers": {"trunk.layers.9.mlp.down": {}}}}}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    outcome = export(small, out, "--calibration-data", text, "--recipe", tmp_path / "recipe.json")
    refused(outcome, "1 tensors that graph denoise does not have", "trunk.layers.9.mlp.down")
    # Recording takes minutes: what is wrong in a file is said before.
    monkeypatch.setattr(quantise.Recording, "sets", None)
    outcome = export(small, out, "--calibration-data", text, "--recipe", tmp_path / "recipe.json")
    refused(outcome, "trunk.layers.9.mlp.down")


@pytest.mark.parametrize(
    ("layer", "field", "target", "said"),
    [
        ("trunk.layers.0.mlp.gate_up", {"scale": 0.01}, "cpu", "fixed scale of 0.01"),
        ("trunk.layers.0.attention.out", {"alpha": 0.5}, "cpu", "nothing precedes it"),
        ("trunk.layers.0.mlp.gate_up", {"precision": "int4"}, "orin-nano", "no whole groups"),
    ],
)
def test_an_edited_recipe_that_cannot_be_is_refused_before_anything_is_recorded(
    traced_before, small, text, out, tmp_path, monkeypatch, layer, field, target, said
):
    recipe = {"version": 1, "graphs": {"denoise": {"layers": {layer: field}}}}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    monkeypatch.setattr(quantise.Recording, "sets", None)
    given = ("--calibration-data", text, "--recipe", tmp_path / "recipe.json")
    refused(export(small, out, *given, target=target), layer, said)


def test_fewer_tokens_to_measure_on_than_a_block_holds(
    traced_before, small, text, out, monkeypatch
):
    monkeypatch.setattr(quantise, "decoded_blocks", lambda *_: (4, 500))
    outcome = export(small, out, "--calibration-data", text)
    refused(outcome, "--loss-tokens 200 is fewer than a block of 500", "500 or more")


def test_canvases_serve_another_precision_and_are_refused_for_another_seed(
    traced_before, small, text, out, tmp_path, monkeypatch
):
    kept = tmp_path / "kept.canvases"
    common = ("--calibration-data", text, "--canvases", kept, "--max-loss", 50)
    assert export(small, out, *common, precision="fp16", target="cpu")[0] == 0
    first = kept.read_bytes()
    recorded = []
    make = recording.MAKERS["decode"]

    def counted(*given, **named):
        recorded.append(named["seed"])
        return make(*given, **named)

    monkeypatch.setattr(recording, "MAKERS", {**recording.MAKERS, "decode": counted})
    assert export(small, out, *common)[0] == 0
    assert recorded == []
    # Clean text and noise were not needed before: they are added.
    assert len(kept.read_bytes()) > len(first)
    (out / "x.dlm").unlink()
    for item in sorted((out / "x.report").iterdir()):
        item.unlink()
    (out / "x.report").rmdir()
    refused(export(small, out, *common, "--seed", 1), "kept.canvases", "another seed", "delete")
    refused(export(small, out, *common, "--block", 8), "another choice of block and context sizes")
    kept.write_bytes(first[: len(first) // 2])
    refused(export(small, out, *common), "is no file of canvases or is damaged", "delete it")


def test_canvases_that_could_not_be_written_are_told_before_any_work(small, text, out, monkeypatch):
    monkeypatch.setattr(pack, "trace", None)
    refused_code, errors, left = export(
        small, out, "--calibration-data", text, "--canvases", out / "none" / "c"
    )
    assert (refused_code, left) == (2, [])
    assert "choose another --canvases" in errors[0]
    assert np.size(errors) == 1
