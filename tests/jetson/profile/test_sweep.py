import math
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from dlm_edge.jetson.profile.profile import ProfileOptions, Profiler
from dlm_edge.jetson.profile.sweep import (
    Axes,
    Sweep,
    flags,
    learnt_blocks,
    mark_frontier,
    measure_quality,
    parse_axes,
    parse_cell,
)
from dlm_edge.jetson.report.table import sweep_notes
from dlm_edge.runtime.errors import ConfigError, DataError
from dlm_edge.runtime.measure import judge as judges
from dlm_edge.runtime.measure.evaluate import evaluate_ids
from dlm_edge.runtime.measure.judge import Judge
from dlm_edge.runtime.pipeline import Pipeline
from score_bundle import STORY, write_score
from toy_bundle import toy_spec


def cell(speed, bits, *, texts=None):
    return {
        "tokens_per_s": speed,
        "quality": {"bits_per_char": bits},
        "texts_sha256": texts or f"{speed} {bits}",
        "tokens_per_nfe": 1.0,
        "threads": 1,
        "flags": f"--threshold {speed}",
    }


def test_the_frontier_is_what_nothing_beats_in_both():
    cells = [cell(100, 1.0), cell(200, 1.5), cell(150, 1.6), cell(90, 1.0), cell(50, 0.9)]
    cells.append({"tokens_per_s": 500})  # threads only: not judged
    mark_frontier(cells)
    assert [c["frontier"] for c in cells] == [True, True, False, False, True, False]


def test_equal_cells_are_both_on_the_frontier():
    cells = [cell(100, 1.0, texts="one"), cell(100, 1.0, texts="other")]
    mark_frontier(cells)
    assert all(c["frontier"] for c in cells)


def test_cells_of_equal_texts_are_one_point_at_their_median_speed():
    cells = [cell(90, 1.0, texts="a"), cell(95, 1.0, texts="a"), cell(130, 1.0, texts="a")]
    cells.append(cell(96, 1.0))
    mark_frontier(cells)
    assert [c["frontier"] for c in cells] == [False, False, False, True]
    assert [c.get("same_as") for c in cells] == [None, "--threshold 90", "--threshold 90", None]


def test_axes_are_read():
    axes = parse_axes(["rule=threshold:0.9,factor:1", "block=16,32"])
    assert axes == Axes(rules=("threshold:0.9", "factor:1"), blocks=(16, 32), threads=None)
    assert parse_axes([]) == Axes()


@pytest.mark.parametrize(
    "text", ["rule", "rule=", "speed=1", "block=a", "block=0", "rule=magic", "rule=random:x"]
)
def test_a_bad_axis_says_what_is_wanted(text):
    with pytest.raises(ConfigError, match="--axis"):
        parse_axes([text])


def test_an_axis_given_twice_is_refused():
    with pytest.raises(ConfigError, match="once"):
        parse_axes(["block=16", "block=32"])


def test_a_cell_is_a_rule_with_its_own_option():
    assert parse_cell("threshold:0.7") == {"rule": "threshold", "threshold": 0.7}
    assert parse_cell("low_confidence:16") == {"rule": "low_confidence", "steps": 16}
    assert parse_cell("first_hitting") == {"rule": "first_hitting"}


def test_flags_are_those_of_dlm_run():
    settings = {"rule": "entropy_bound", "entropy_bound": 0.5, "block_size": 16}
    assert flags(settings, 2) == "--rule entropy_bound --entropy-bound 0.5 --block 16 --threads 2"


def test_a_fault_is_not_taken_for_a_text_that_is_too_short(monkeypatch):
    def fails(*args, **options):
        raise DataError("another fault")

    monkeypatch.setattr(judges, "evaluate_ids", fails)
    with (
        Pipeline.load(threads=1) as pipeline,
        pytest.raises(DataError, match="another fault"),
    ):
        Judge(pipeline).read("Once upon a time there was a little girl. " * 4)


def test_bits_per_character_are_the_bundles_own_likelihood():
    text = "Once upon a time there was a little girl. She had a big red ball and a small dog. " * 2
    with Pipeline.load(threads=1) as pipeline:
        judge = Judge(pipeline)
        found = judge.read(text)
        ids = [pipeline.manifest.eos_token_id, *pipeline.tokenizer.encode(text)]
        result = evaluate_ids(
            pipeline.model, np.array(ids), block_size=16,
            relative_half_width=0.05, max_samples=8,
        )  # fmt: skip
        read = pipeline.tokenizer.decode(ids[1 : 1 + result.num_tokens])
        assert found.bits == pytest.approx(result.total_nats / math.log(2))
        assert found.num_chars == len(read)
        scrambled = " ".join(sorted(text.split(), key=lambda word: word[::-1]))
        assert judge.read(scrambled).bits > found.bits
        assert judge.read("Hi") is None
        quality = measure_quality([text, text, "Hi"], judge)
        assert (quality.num_texts, quality.num_scored) == (3, 2)
        assert quality.half_width == 0


def test_texts_shorter_than_the_judges_block_are_read_as_one(tmp_path):
    # Whole canvases of 16 and 32: no text of 9 is one.
    texts = [STORY[:9], STORY[9:18], STORY[18:]]
    with Pipeline.load(write_score(tmp_path / "score.dlm"), threads=1) as pipeline:
        judge = Judge(pipeline)
        assert judge.read(texts[0]) is None
        quality = measure_quality(texts, judge)
        assert quality.together
        assert (quality.num_scored, quality.half_width) == (3, None)
        # 16 of the 30 ids are read: a start, 9 characters, another start, 5 characters.
        ids = [0, *pipeline.tokenizer.encode(texts[0]), 0, *pipeline.tokenizer.encode(texts[1])]
        result = evaluate_ids(
            pipeline.model, np.array(ids[:16]), block_size=16,
            relative_half_width=0.05, max_samples=8,
        )  # fmt: skip
        assert result.num_tokens == 15
        assert quality.bits_per_char == pytest.approx(result.total_nats / math.log(2) / 14)
        short = measure_quality(["The", "cat"], judge)
        assert (short.bits_per_char, short.together) == (None, False)


def test_what_the_judge_could_not_read_is_said():
    quality = {"bits_per_char": None, "together": False}
    (line,) = sweep_notes({"cells": [{"quality": quality}, {}]})
    assert "--max-tokens" in line
    (line,) = sweep_notes({"cells": [{"quality": {"bits_per_char": 1.0, "together": True}}]})
    assert "read as one" in line
    assert not list(sweep_notes({"cells": [{"quality": {"bits_per_char": 1.0}}]}))


def sweep(profiler, **given):
    options = {"prompts": ("Once upon a time",), "num_texts": 2, "judge": None}
    return Sweep(
        profiler, profiler.pipeline, parse_axes(given.pop("axes", ())),
        progress=lambda *_: None, **{**options, **given},
    )  # fmt: skip


@pytest.fixture(scope="module")
def profiler():
    made = Profiler(ProfileOptions(threads=1, max_tokens=40, sensors="none"))
    made.pipeline = made._load()
    yield made
    made.pipeline.close()


def test_a_sweeps_memory_is_not_that_of_the_texts_before_it():
    made = Profiler(ProfileOptions(threads=1, sensors="none", layers=False))
    with made.span("runs"):
        made.sampler.series.add("malloc", "memory", "MiB", time.perf_counter(), 20.0)
    time.sleep(0.01)  # spans are told to a tenth of a millisecond
    with made.span("sweep"):
        time.sleep(0.01)
        made.sampler.series.add("malloc", "memory", "MiB", time.perf_counter(), 90.0)
    assert made.finish(complete=True)["memory"]["malloc_peak_mib"] == 20.0


def test_a_sweep_measures_its_cells_and_marks_the_best(profiler):
    run = sweep(profiler, axes=["rule=threshold:0.5,threshold:0.95", "block=32", "threads=1,2"])
    run.run()
    found = run.to_json()
    assert found["planned"] == len(found["cells"]) == 4
    default, loose, strict, threads = found["cells"]
    assert loose["settings"]["threshold"] == 0.5
    assert loose["tokens_per_nfe"] > strict["tokens_per_nfe"]
    assert (default["threads"], threads["threads"]) == (1, 2)
    assert "quality" not in threads
    assert any(c["frontier"] for c in found["cells"])
    assert found["judge"] is None


def test_cells_keep_the_settings_that_no_axis_varies(profiler, monkeypatch):
    own = {"temperature": 0.7, "rule": "threshold", "threshold": 0.6, "block_size": 16}
    monkeypatch.setattr(profiler, "settings", own)
    run = sweep(profiler, axes=["rule=threshold:0.9,factor:1", "threads=1"])
    assert [settings for settings, _ in run._planned] == [
        own,
        own | {"threshold": 0.9},
        {"temperature": 0.7, "rule": "factor", "factor": 1.0, "block_size": 16},
    ]


def test_an_interrupted_sweep_keeps_its_cells(profiler, monkeypatch):
    run = sweep(profiler, axes=["rule=threshold:0.5,threshold:0.95", "block=32", "threads=1"])
    measure = run._cell

    def stop_at_the_second(*arguments, **keys):
        if run.cells:
            raise KeyboardInterrupt
        return measure(*arguments, **keys)

    monkeypatch.setattr(run, "_cell", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert (run.to_json()["planned"], len(run.to_json()["cells"])) == (3, 1)


def test_a_block_that_the_bundle_has_not_is_refused(profiler):
    with pytest.raises(ConfigError, match="blocks 16, 32, 256"):
        sweep(profiler, axes=["block=7"])


@pytest.mark.parametrize(
    ("learnt", "blocks"), [((16, 32, 256), [16, 32]), ((16,), [16]), ((), [16, 32])]
)
def test_unasked_a_sweep_tries_the_blocks_that_the_model_has_learnt(learnt, blocks):
    # 64 is twice 32, for storing one block and beginning the next; 256 is the whole canvas.
    specs = [toy_spec(rows, 256) for rows in (16, 32)]
    specs.append(replace(toy_spec(64, 256), purpose="advance", block=32))
    specs.append(replace(toy_spec(256, 8), purpose="fill"))
    manifest = SimpleNamespace(family="mdlm", graphs=specs, block_sizes=learnt)
    pipeline = SimpleNamespace(manifest=manifest)
    assert learnt_blocks(pipeline) == blocks


@pytest.fixture(scope="module")
def drafting(tmp_path_factory):
    """A profiler of a bundle that drafts 2 or 4 tokens, of which the model has learnt 4."""
    pytest.importorskip("torch")
    from dlm_edge.export.pack import ExportSettings, export_checkpoint
    from tiny_checkpoint import make_checkpoint

    folder = tmp_path_factory.mktemp("drafts")
    make_checkpoint(
        folder / "checkpoint", "tidar", mask_token_id=1, block_sizes="4", context=64,
        backbone="qwen2", num_heads=2, dim=32, num_layers=1,
    )  # fmt: skip
    settings = ExportSettings(target="cpu", precision="fp32", blocks=(2, 4), contexts=(64,))
    export_checkpoint(folder / "checkpoint", folder / "draft.dlm", settings)
    options = ProfileOptions(
        bundle=folder / "draft.dlm", threads=1, max_tokens=12, sensors="none", settings={}
    )
    made = Profiler(options)
    made.pipeline = made._load()
    yield made
    made.pipeline.close()


def test_drafts_stand_beside_the_causal_decoding_that_they_are_measured_against(drafting):
    run = sweep(drafting, axes=["threads=1"])
    assert [settings for settings, _ in run._planned] == [
        {"block_size": 2},
        {"rule": "draft_verify", "beta": 0.5, "block_size": 2},
        {"rule": "next_token"},
        {"block_size": 4},
        {"rule": "draft_verify", "beta": 0.5, "block_size": 4},
    ]
    run.run()
    cells = run.to_json()["cells"]
    assert cells[2]["tokens_per_nfe"] == 1.0
    assert cells[2]["flags"] == "--rule next_token --threads 1"
    assert cells[0]["quality"] == cells[2]["quality"] == cells[3]["quality"]  # the same texts


@pytest.mark.parametrize("own", [{}, {"block_size": 4}, {"rule": "next_token"}], ids=str)
def test_causal_decoding_is_asked_for_by_name_whatever_block_size_is_set(
    drafting, monkeypatch, own
):
    monkeypatch.setattr(drafting, "settings", own)
    run = sweep(drafting, axes=["rule=next_token", "threads=1"])
    assert {"rule": "next_token"} in [settings for settings, _ in run._planned]
    run.run()
