"""Family sedd from a bundle on ONNX Runtime: commands, the API, several samples, frames."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from dlm_edge.runtime.cli import eval as cli_eval
from dlm_edge.runtime.cli import run as cli
from dlm_edge.runtime.errors import BundleError, ConfigError
from dlm_edge.runtime.pipeline import Pipeline
from score_bundle import MASK, STORY, probabilities, write_score

pytest.importorskip("onnxruntime")
LINE = STORY * 6


@pytest.fixture(scope="module", params=["uniform", "absorb"])
def bundle(request, tmp_path_factory):
    return write_score(tmp_path_factory.mktemp(request.param) / "model.dlm", request.param)


@pytest.fixture(scope="module")
def pipeline(bundle):
    with Pipeline.from_pretrained(bundle.parent, threads=1) as opened:
        yield opened


def run(command, *arguments):
    done = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def like(text, wanted):
    """Share of characters that are the story's."""
    return np.mean([a == b for a, b in zip(text, wanted, strict=True)])


def test_a_text_is_written_from_the_smallest_graph_and_in_windows_beyond_the_largest(bundle):
    for new, approximate in ((10, False), (31, False), (60, True)):
        done = run(cli.main, bundle, "--max-tokens", new, "--json", "--threads", 1)
        found = json.loads(done.stdout)
        assert found["approximate"] is approximate
        assert len(found["token_ids"]) == new
        assert found["rule"] == "tweedie"
        assert found["settings"]["steps"] == 8
        if not approximate:
            assert like(found["text"], LINE[:new]) > 0.4


def test_steps_choose_no_other_rule_and_foreign_rules_are_refused_in_one_line(bundle):
    done = run(cli.main, bundle, "--steps", 3, "--max-tokens", 5, "--json", "--threads", 1)
    assert json.loads(done.stdout)["rule"] == "tweedie"
    for arguments, words in (
        (("--rule", "threshold"), "family sedd has no rule 'threshold', only tweedie, euler"),
        (("--threshold", "0.8"), "threshold has no effect on rule tweedie"),
        (("--rule", "euler", "--factor", "2"), "factor has no effect on rule euler"),
        (("--repetition-penalty", "1.2"), "repetition_penalty has no effect"),
        (("--block", "8"), "16, 32"),
    ):
        done = run(cli.main, bundle, *arguments)
        assert done.exit_code == 2
        assert words in done.stderr
        assert done.stderr.count("\n") == 1


def test_gaps_are_filled_between_texts_that_stay(bundle):
    done = run(cli.main, bundle, "--infill", "The ___ sat, the ___.", "--gap-tokens", "3,3",
               "--json", "--threads", 1)  # fmt: skip
    found = json.loads(done.stdout)
    assert found["finish_reason"] == "filled"
    assert found["text"].startswith("The ")
    assert found["text"].endswith(".")
    assert MASK not in found["token_ids"]


def test_watching_shows_a_line_per_step_and_then_the_text(bundle):
    done = run(cli.main, bundle, "--watch", "--steps", 6, "--max-tokens", 12, "--threads", 1)
    assert 2 <= done.stdout.count("step ") <= 6
    plain = run(cli.main, bundle, "--steps", 6, "--max-tokens", 12, "--threads", 1).stdout
    assert done.stdout.endswith(plain)


def test_the_bound_of_a_text_is_measured_without_torch(bundle, tmp_path):
    text = tmp_path / "story.txt"
    text.write_text(LINE[:31], encoding="utf-8")
    done = run(cli_eval.main, bundle, "--data", text, "--json", "--max-samples", 400,
               "--margin", 0.05, "--threads", 1)  # fmt: skip
    found = json.loads(done.stdout)
    assert found["block"] == 32
    assert found["num_tokens"] == 31
    exact = -np.log(probabilities()[1:32].max(axis=1)).mean()
    assert found["perplexity_low"] * 0.97 < np.exp(exact) < found["perplexity_high"] * 1.03


def test_several_samples_are_finished_texts_that_differ_and_can_be_had_singly(pipeline):
    texts = pipeline.generate(num_samples=3, num_steps=4, max_tokens=12, seed=5)
    assert [text.sample_index for text in texts] == [0, 1, 2]
    assert len({text.token_ids for text in texts}) == 3
    assert all(text.settings["steps"] == 4 for text in texts)
    again = pipeline.generate(max_tokens=12, seed=5, sample_index=1, steps=4).result()
    assert again.token_ids == texts[1].token_ids
    later = pipeline.generate("The", num_samples=1, sample_index=7, max_tokens=4)
    assert later[0].sample_index == 7


def test_frames_are_the_canvases_of_every_step_and_end_with_the_text(pipeline):
    frames = list(pipeline.frames("The", num_steps=5, max_tokens=12))
    assert [frame.nfe for frame in frames] == list(range(1, len(frames) + 1))
    assert all(frame.pieces[0] == ("given", "The") for frame in frames)
    text = pipeline.generate("The", num_steps=5, max_tokens=12).result()
    assert frames[-1].text == "The" + text.text
    assert frames[-1].token_ids[4:] == text.token_ids
    revised = [frame.num_revised for frame in frames]
    assert revised == sorted(revised)
    absorbs = pipeline.manifest.model["graph"] == "absorb"
    assert (revised[-1] == 0) == absorbs
    assert any("░" in frame.text for frame in frames[:-1]) == absorbs
    filled = list(pipeline.frames(template="The ___ sat", gap_tokens=3))
    assert filled[-1].text.startswith("The")
    assert filled[-1].text.endswith("sat")


@pytest.mark.parametrize("graph", ["uniform", "absorb"])
def test_the_last_frame_of_a_text_that_ends_early_is_the_text_and_nothing_behind_it(
    graph, tmp_path
):
    path = write_score(tmp_path / "ends.dlm", graph, end=9)
    with Pipeline.load(path, threads=1) as pipeline:
        whole = pipeline.generate("The", num_steps=6, max_tokens=12).result()
        for stop, reason in (((), "end"), ((whole.text[2],), "stop")):
            options = {"num_steps": 6, "max_tokens": 12, "stop": stop}
            frames = list(pipeline.frames("The", **options))
            text = pipeline.generate("The", **options).result()
            assert text.finish_reason == reason
            assert frames[-1].nfe == text.nfe
            assert frames[-1].token_ids[4:] == text.token_ids
            assert len(frames[-1].token_ids) < len(frames[-2].token_ids) == 16
            assert frames[-1].text.startswith("The" + text.text)
            assert all(state in ("given", "committed") for state, _ in frames[-1].pieces)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_samples": 0}, "num_samples must be"),
        ({"num_samples": 2, "provisional": True}, "leave provisional out"),
        ({"num_steps": 4, "steps": 4}, "one setting"),
        ({"num_steps": 0}, "steps must be"),
    ],
)
def test_bad_arguments_are_refused(pipeline, arguments, words):
    with pytest.raises(ConfigError, match=words):
        pipeline.generate("The", **arguments)


def test_frames_take_a_prompt_or_a_template_of_one_text(pipeline):
    with pytest.raises(ConfigError, match="its own prompt"):
        pipeline.frames("The", template="a ___")
    with pytest.raises(ConfigError, match="one text"):
        pipeline.frames("The", num_samples=2)


def test_a_folder_is_opened_by_the_bundle_in_it(tmp_path):
    with pytest.raises(BundleError, match="holds no bundle"):
        Pipeline.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(BundleError, match=r"train\.pretrained, or make a bundle of it: dlm-export"):
        Pipeline.from_pretrained(tmp_path)
    with pytest.raises(BundleError, match="dlm-export someone/model"):
        Pipeline.from_pretrained("someone/model")
    write_score(tmp_path / "other.dlm")
    with Pipeline.from_pretrained(tmp_path, threads=1) as pipeline:
        assert pipeline.bundle.path.name == "other.dlm"
    write_score(tmp_path / "third.dlm")
    with pytest.raises(BundleError, match="2 bundles"):
        Pipeline.from_pretrained(tmp_path)
    write_score(tmp_path / "model.dlm")
    with Pipeline.from_pretrained(tmp_path, threads=1) as pipeline:
        assert pipeline.bundle.path.name == "model.dlm"
