"""Models that draft and verify, from the command line, on the CPU and on a board's stand-in."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from dlm_edge.runtime.cli.run import main
from dlm_edge.runtime.pipeline import Pipeline
from emulation.board import make_board

BLOCKS, CONTEXTS = (2, 4), (64,)
HEATS = ({}, {"temperature": 0.9}, {"temperature": 0.8, "top_k": 20, "beta": 0.6})


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """The same weights with the head apart, and as one graph."""
    pytest.importorskip("torch")
    from dlm_edge.export.pack import ExportSettings, export_checkpoint
    from tiny_checkpoint import make_checkpoint

    folder = tmp_path_factory.mktemp("drafts")
    make_checkpoint(
        folder / "checkpoint", "tidar", mask_token_id=1, block_sizes="2,4", context=64,
        tie_embeddings=True, backbone="qwen2", num_heads=4, num_kv_heads=2, dim=64, num_layers=1,
    )  # fmt: skip
    for name, target in (("parts", "cpu"), ("whole", "orin-nano")):
        settings = ExportSettings(target=target, precision="fp32", blocks=BLOCKS, contexts=CONTEXTS)
        export_checkpoint(folder / "checkpoint", folder / f"{name}.dlm", settings)
    return {name: str(folder / f"{name}.dlm") for name in ("parts", "whole")}


@pytest.fixture(params=["at once", "later"])
def board(monkeypatch, tmp_path, request):
    """Calls end before they return, or a thread works them off behind the host's back."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return make_board(monkeypatch, asynchronous=request.param == "later")


def texts(bundle, engine, **settings):
    with Pipeline.load(bundle, engine=engine) as pipeline:
        found = []
        for seed, prompt in enumerate(("abc", "", "a longer prompt than one run of drafts")):
            generation = pipeline.generate(prompt, max_tokens=20, seed=seed, **settings)
            spans = [span for span in generation if span.committed]
            result = generation.result()
            assert tuple(i for span in spans for i in span.token_ids) == result.token_ids
            found.append((result.token_ids, result.finish_reason, result.nfe))
        return found


@pytest.mark.parametrize("name", ["parts", "whole"])
@pytest.mark.parametrize("heat", HEATS, ids=str)
def test_a_board_gives_the_tokens_of_the_cpu(bundles, board, name, heat):
    wanted = texts(bundles[name], "onnxruntime", **heat)
    assert texts(bundles[name], "tensorrt", **heat) == wanted
    # The head goes in the same run, or in two more, whose word the host awaits in between.
    assert board.device.counts["replays"] > (10 if name == "whole" else 20)


@pytest.mark.parametrize("block", BLOCKS)
def test_drafts_change_nothing_but_the_number_of_runs(bundles, block):
    drafted = texts(bundles["parts"], "onnxruntime", block_size=block)
    alone = texts(bundles["parts"], "onnxruntime", rule="next_token")
    assert [one[:2] for one in drafted] == [one[:2] for one in alone]
    assert texts(bundles["whole"], "onnxruntime", block_size=block) == drafted


@pytest.mark.parametrize(("asked", "found"), [(None, 4), (4, 4), (2, 2)])
def test_the_longest_drafts_are_taken_unless_asked_otherwise(bundles, asked, found):
    with Pipeline.load(bundles["parts"], engine="onnxruntime") as pipeline:
        seen = []
        pipeline.observer = seen.append
        pipeline.generate("abc", max_tokens=9, block_size=asked).result()
    assert {step.spec.block for step in seen if step.spec.purpose == "draft"} == {found}


def run(*arguments):
    return CliRunner().invoke(main, arguments)


def test_the_command_takes_the_rules_options(bundles):
    plain = json.loads(run(bundles["parts"], "abc", "--json", "--max-tokens", "9").stdout)
    assert (plain["rule"], plain["settings"]["beta"]) == ("draft_verify", 1.0)
    largest = run(bundles["parts"], "abc", "--json", "--max-tokens", "9", "--block-size", "4")
    found = json.loads(largest.stdout)  # what decoding takes unless asked
    assert (found["nfe"], found["token_ids"]) == (plain["nfe"], plain["token_ids"])
    other = run(bundles["parts"], "abc", "--json", "--beta", "0.5", "--block-size", "2")
    record = json.loads(other.stdout)
    assert (record["settings"]["beta"], record["settings"]["block_size"]) == (0.5, 2)
    alone = run(bundles["parts"], "abc", "--json", "--max-tokens", "9", "--rule", "next_token")
    record = json.loads(alone.stdout)
    assert record["token_ids"] == plain["token_ids"]
    assert plain["nfe"] <= record["nfe"]
    assert np.isclose(plain["tokens_per_nfe"], len(plain["token_ids"]) / plain["nfe"], atol=1e-4)


def test_a_rule_that_an_option_chooses_is_said_in_a_line(bundles):
    asked = ("abc", "--json", "--max-tokens", "5", "--num-samples", "2")
    chosen = run(bundles["parts"], *asked, "--repetition-penalty", "1.3")
    assert [json.loads(line)["rule"] for line in chosen.stdout.splitlines()] == ["next_token"] * 2
    assert chosen.stderr.count("\n") == 1
    assert "--repetition-penalty has no effect on rule draft_verify" in chosen.stderr
    assert "decoding by next_token" in chosen.stderr
    named = run(bundles["parts"], *asked, "--repetition-penalty", "1.3", "--rule", "next_token")
    assert (named.stderr, run(bundles["parts"], *asked, "--beta", "0.5").stderr) == ("", "")
    refused = run(bundles["parts"], *asked, "--repetition-penalty", "-1")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)


def test_what_the_bundle_has_not_is_refused_in_a_line(bundles):
    for arguments, words in (
        (["--block-size", "3"], "no graph of block size 3; choose from 2, 4"),
        (["--beta", "2"], "beta must be at least 0 and at most 1"),
        (["--rule", "next_token", "--beta", "0.5"], "beta has no effect on rule next_token"),
        (
            ["--rule", "threshold"],
            "family tidar has no rule 'threshold', only draft_verify, next_token",
        ),
        (
            ["--rule", "draft_verify", "--repetition-penalty", "1.3"],
            "repetition_penalty has no effect on rule draft_verify",
        ),
        (["--infill", "a ___ b"], "cannot fill gaps"),
    ):
        prompt = [] if arguments[0] == "--infill" else ["abc"]
        result = run(bundles["parts"], *prompt, *arguments)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert words in result.stderr
    result = run(bundles["parts"], "abc " * 40)
    assert result.exit_code == 2
    assert "this bundle sees 64 positions" in result.stderr
    result = run(bundles["parts"], "abc " * 40, "--slide", "--max-tokens", "5")
    assert result.exit_code == 0
    assert "approximate" in result.stderr
