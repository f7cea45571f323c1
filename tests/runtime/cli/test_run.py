import json
import pickle

import numpy as np
import pytest
from click import Context
from click.testing import CliRunner
from dlm_edge.runtime.cli.options import split_arguments
from dlm_edge.runtime.cli.run import main
from dlm_edge.runtime.engines.onnxruntime import OnnxRuntimeEngine

STORY = "The cat sat, the café shut. "
STABLE_KEYS = {
    "text",
    "token_ids",
    "nfe",
    "tokens_per_nfe",
    "seconds",
    "tokens_per_s",
    "peak_rss_mib",
    "engine",
    "precision",
    "rule",
    "seed",
}


def run(*arguments, **keys):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], **keys)


def written(*arguments, **keys):
    result = run(*arguments, **keys)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(code, *arguments, **keys):
    """Returns the one line that a failing run prints."""
    result = run(*arguments, **keys)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("dlm-run: error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_prompt_and_continuation_are_printed(tiny_bundle):
    assert written(tiny_bundle, "The ", "--max-tokens", 4) == "The cat \n"


def test_without_a_prompt_the_model_writes_what_it_likes(tiny_bundle):
    assert written(tiny_bundle, "--max-tokens", 3) == "The\n"
    assert written(tiny_bundle, "", "--max-tokens", 3) == "The\n"


def test_json_is_one_object_with_the_stable_keys(tiny_bundle):
    got = json.loads(written(tiny_bundle, "The ", "--max-tokens", 6, "--json", "--seed", 3))
    assert set(got) >= STABLE_KEYS
    assert (got["text"], len(got["token_ids"]), got["seed"]) == ("cat sa", 6, 3)
    assert got["tokens_per_nfe"] == pytest.approx(6 / got["nfe"], abs=1e-3)
    assert list(got["seconds"])[-1] == "total"
    assert got["peak_rss_mib"] > 1
    assert (got["engine"], got["precision"], got["rule"]) == (
        "onnxruntime-cpu",
        "fp32",
        "threshold",
    )


def test_several_prompts_give_json_lines_in_their_order(tiny_bundle, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("The \n\nThe cat", "utf-8")
    output = written(
        tiny_bundle, "--prompt-file", prompts, "--num-samples", 2, "--json", "--max-tokens", 2
    )
    lines = [json.loads(line) for line in output.splitlines()]
    assert [line["prompt"] for line in lines] == ["The ", "The ", "", "", "The cat", "The cat"]
    assert [line["sample_index"] for line in lines] == [0, 1] * 3


def test_several_texts_are_told_apart_and_stdin_gives_prompts(tiny_bundle):
    output = written(tiny_bundle, "--prompt-file", "-", "--max-tokens", 3, input="The \nThe c\n")
    assert output == "The cat\n<|endoftext|>\nThe cat \n"


def test_stop_strings_may_be_repeated(tiny_bundle):
    assert written(tiny_bundle, "--stop", "shut", "--stop", "sat") == "The cat \n"


def test_infilling_prints_the_whole_text_and_json_names_the_gaps(tiny_bundle):
    template = "Xé ___ y ___."
    text = written(tiny_bundle, "--infill", template, "--gap-tokens", "3,2")
    assert text.startswith("Xé ")
    assert text.endswith(".\n")
    got = json.loads(written(tiny_bundle, "--infill", template, "--gap-tokens", "3,2", "--json"))
    assert got["text"] == text[:-1]
    assert len(got["gaps"]) == 2
    assert len(got["token_ids"]) == 5
    assert got["finish_reason"] == "filled"


def test_a_text_beyond_the_context_is_said_to_be_approximate(tiny_bundle):
    result = run(tiny_bundle, "The " * 30, "--max-tokens", 3, "--slide")
    assert result.exit_code == 0
    assert "approximate" in result.stderr


def test_a_prompt_beyond_the_context_is_refused_with_its_length_and_the_remedy(tiny_bundle):
    result = run(tiny_bundle, "The " * 30, "--max-tokens", 3)
    assert result.exit_code == 2
    assert "121 tokens" in result.stderr
    assert "shorten it" in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_option_without_a_rule_chooses_its_rule(tiny_bundle):
    for option, value, rule in (
        ("--factor", 1, "factor"),
        ("--steps", 2, "low_confidence"),
        ("--threshold", 0.5, "threshold"),
        ("--entropy-bound", 0.5, "entropy_bound"),
    ):
        got = json.loads(written(tiny_bundle, option, value, "--json", "--max-tokens", 8))
        assert got["rule"] == rule


def test_a_bundle_without_decoding_settings_takes_options_too(make_bundle):
    got = json.loads(written(make_bundle(decoding={}), "--steps", 2, "--json", "--max-tokens", 8))
    assert got["rule"] == "low_confidence"


def test_verbose_says_engine_and_figures_on_stderr(tiny_bundle):
    result = run(tiny_bundle, "--max-tokens", 3, "-v")
    assert result.stdout == "The\n"
    assert "engine onnxruntime-cpu: auto" in result.stderr
    assert "3 tokens" in result.stderr
    assert "graph runs" in result.stderr


def test_watching_degrades_to_a_line_per_step_when_stdout_is_no_terminal(tiny_bundle):
    *steps, text = written(tiny_bundle, "--watch", "--max-tokens", 5).splitlines()
    assert text == "The c"
    assert len(steps) > 2
    assert all(line.startswith("step ") for line in steps)
    assert "«" in steps[0]
    assert "░" in steps[0]
    assert steps[-1].endswith(": The c")


def test_info_says_what_the_bundle_holds(tiny_bundle):
    text = written(tiny_bundle, "--info")
    assert "family  mdlm" in text
    assert "decoding  rule threshold, threshold 0.9, temperature 0.0" in text
    got = json.loads(written(tiny_bundle, "--info", "--json"))
    assert (got["family"], len(got["graphs"])) == ("mdlm", 3)


def test_info_leaves_nested_facts_to_json(make_bundle):
    provenance = {"seed": 1, "training": {"steps": 7, "tokens": 8}}
    lines = written(make_bundle(provenance=provenance, decoding={}), "--info").splitlines()
    assert lines[-1].split(maxsplit=1)[1] == "seed 1, training: see --json"
    assert "rule threshold" in lines[-2]


def test_a_bundle_without_golden_vectors_cannot_be_checked(tiny_bundle):
    assert "golden" in refused(1, tiny_bundle, "--check")


@pytest.mark.parametrize("name", ["missing.dlm", "A story.dlm", "MODEL.DLM"])
def test_what_ends_in_dlm_is_a_bundle_and_never_a_prompt(name):
    assert name in refused(1, name)


@pytest.mark.parametrize("name", ["checkpoint", "weights.safetensors", "small/model.safetensors"])
def test_a_path_is_never_a_prompt(tiny_bundle, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "weights.safetensors").write_bytes(b"x")
    message = refused(2, tiny_bundle, name)
    assert name in message
    assert "dlm-export" in message
    assert "dlm-export" in refused(2, tiny_bundle, name, "Once upon")


def test_a_text_with_a_slash_or_beyond_any_path_is_a_prompt(tiny_bundle):
    for prompt in ("the cat and/or the dog sat", "a/b " * 2000):
        assert split_arguments((str(tiny_bundle), prompt))[1] == prompt


def test_h_is_help():
    main.get_params(Context(main))  # click keeps the help option of the first context
    assert written("-h") == written("--help")


def test_a_damaged_or_foreign_bundle_is_refused(tiny_bundle, tmp_path):
    good = tiny_bundle.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    for content in (b"", good[: len(good) // 2], bytes(flipped), b"hello", b"PK\x03\x04" * 9):
        bad = tmp_path / "bad.dlm"
        bad.write_bytes(content)
        refused(1, bad)


def test_another_bundle_than_the_expected_one_is_refused(tiny_bundle):
    assert "SHA-256" in refused(1, tiny_bundle, "--expect-sha256", "ab" * 32)


def test_an_unknown_family_is_refused(make_bundle):
    assert "astrology" in refused(2, make_bundle(family="astrology"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["one", "two"], "in quotes"),
        (["other.dlm"], "2 bundles"),
        (["--infill", "a ___", "prompt"], "--infill contradicts PROMPT"),
        (["--infill", "a ___", "--prompt-file", "x"], "--prompt-file"),
        (["--infill", "a ___", "--max-tokens", "3"], "--max-tokens"),
        (["--infill", "a ___", "--stop", "x"], "--stop"),
        (["--infill", "a ___", "--block", "8"], "--block"),
        (["--infill", "no gap"], "no gap"),
        (["--infill", ""], "no gap"),
        (["--infill", "a ___", "--gap-tokens", "x"], "--gap-tokens"),
        (["--infill", "a ___", "--gap-tokens", "1,2"], "1 gaps"),
        (["--infill", "a ___", "--gap-tokens", "0"], "1 or more"),
        (["--infill", "a ___", "--gap-tokens", "99"], "largest canvas 64"),
        (["--gap-tokens", "3"], "--infill"),
        (["--watch-delay", "1"], "--watch"),
        (["--watch", "--json"], "--watch contradicts --json"),
        (["--prompt-file", "x", "prompt"], "--prompt-file contradicts PROMPT"),
        (["--check", "--info"], "--check contradicts --info"),
        (["--check", "prompt"], "--check contradicts PROMPT"),
        (["--info", "--temperature", "0"], "--info contradicts --temperature"),
        (["--stop", ""], "--stop"),
        (["--rule", "best"], "--rule"),
        (["--rule", "low_confidence", "--threshold", "0.5"], "no effect"),
        (["--threshold", "0.5", "--factor", "1"], "no effect"),
        (["--threshold", "1.5"], "at most 1"),
        (["--temperature", "0", "--top-p", "0.5"], "temperature"),
        (["--top-k", "5"], "temperature"),
        (["--temperature", "-1"], "temperature"),
        (["--temperature", "nan"], "temperature"),
        (["--max-tokens", "0"], "--max-tokens"),
        (["--block", "7"], "8, 64"),
        (["--seed", "-1"], "seed"),
        (["--engine", "abacus"], "engine"),
        (["--threads", "0"], "--threads"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_contradictory_or_impossible_options_end_with_status_2(tiny_bundle, arguments, named):
    assert named in refused(2, tiny_bundle, *arguments)


def test_a_prompt_file_that_cannot_be_used_is_refused(tiny_bundle, tmp_path):
    bad = tmp_path / "bad.txt"
    assert "No such file" in refused(1, tiny_bundle, "--prompt-file", bad)
    bad.write_bytes(b"")
    assert "holds no line" in refused(1, tiny_bundle, "--prompt-file", bad)
    bad.write_bytes(b"\xff\n")
    assert "not UTF-8 in line 1" in refused(1, tiny_bundle, "--prompt-file", bad)


def test_a_condition_that_cannot_be_read_is_refused(tiny_bundle, tmp_path):
    for text in ("source", "=a.npy", "source="):
        assert "NAME=FILE.npy" in refused(2, tiny_bundle, "--condition", text)
    path = tmp_path / "a.npy"
    given = ("--condition", f"source={path}")
    assert f"source from {path}: No such file" in refused(1, tiny_bundle, *given)
    for content in (b"", b"text", b"PK\x03\x04", pickle.dumps([1])):
        path.write_bytes(content)
        line = refused(1, tiny_bundle, *given)
        assert f"source from {path}: " in line
        assert line.endswith("write it with numpy.save\n")
        assert "pickle" not in line
    np.save(path, np.zeros(3, np.float32))
    assert "source is given twice" in refused(2, tiny_bundle, *given, *given)
    assert "conditions are none" in refused(2, tiny_bundle, *given)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert "write it with numpy.save" in refused(1, tiny_bundle, *given)


def test_debug_adds_the_traceback():
    result = run("missing.dlm", "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("dlm-run: error: ")


@pytest.mark.parametrize("flags", [[], ["--json"], ["--watch"], ["--infill", "The ___"]])
def test_ctrl_c_prints_what_was_committed_and_ends_with_130(tiny_bundle, monkeypatch, flags):
    count, run_graph = 0, OnnxRuntimeEngine.run

    def interrupted(engine):
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt
        run_graph(engine)

    monkeypatch.setattr(OnnxRuntimeEngine, "run", interrupted)
    result = run(tiny_bundle, *flags)
    assert result.exit_code == 130
    assert "Traceback" not in result.output
    last = result.stdout.splitlines()[-1]
    if flags == ["--json"]:
        got = json.loads(last)
        assert got["finish_reason"] == "interrupted"
        last = got["text"]
    assert last.startswith("The c" if "--infill" not in flags else "The ")


def test_a_prompt_that_is_not_utf8_is_refused(tiny_bundle):
    assert "UTF-8" in refused(2, tiny_bundle, "a\udcffb")
