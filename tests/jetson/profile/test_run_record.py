import pytest
from dlm_edge.jetson.profile.run_record import STAGES, spread, summarise, text_run
from dlm_edge.runtime.generate import GraphRun
from dlm_edge.runtime.text_generation import TextResult
from toy_bundle import toy_spec


def run(phase, begin, *, feed=0.001, engine=0.010, update=0.004, block=32, rows=32, committed=0):
    return GraphRun(
        phase=phase, spec=toy_spec(rows, 128), block=block, begin=begin, prepare=0.0,
        feed=feed, engine=engine, update=update, num_committed=committed,
    )  # fmt: skip


def result(nfe, tokens, total, *, text=0.003, host=0.002, prepare=0.5):
    seconds = {"prepare": prepare, "text": text, "host": host, "total": total}
    return TextResult(
        text="a b", token_ids=tuple(range(tokens)), gaps=None, finish_reason="length",
        approximate=False, nfe=nfe, tokens_per_nfe=tokens / nfe, seconds=seconds,
        tokens_per_s=0.0, engine="e", precision="fp32", rule="threshold", seed=0,
        sample_index=0, settings={},
    )  # fmt: skip


STEPS = [
    run("prefill", 10.00),
    run("denoise", 10.02, committed=4),
    run("denoise", 10.04, committed=20),
    run("commit", 10.06),
    run("denoise", 10.08, committed=16),
]


def text(steps=STEPS, tokens=40, total=0.58):
    return text_run(
        result(len(steps), tokens, total), steps, prompt=0, num_prompt_tokens=40,
        tokenise_s=0.001, begin=9.998,
    )  # fmt: skip


def test_stages_are_what_the_runs_were_for_and_add_up():
    found = text()
    assert found.stages == pytest.approx(
        {
            "tokenise": 0.001,
            "prefill": 0.015,
            "engine": 4 * 0.010,
            "sampling": 3 * 0.004,
            "host": 4 * 0.001 + 0.004 + 0.002,
            "detokenise": 0.002,
        }
    )
    assert found.total_s == pytest.approx(sum(found.stages.values()))


def test_the_prompts_tail_shares_the_first_block():
    # 40 prompt tokens leave 8 in the first block of 32, so that 24 new ones finish it.
    found = text()
    assert found.num_blocks == 2
    assert found.first_block_s == pytest.approx(10.04 + 0.015 - 9.998)
    summary = summarise([found])
    assert summary["figures"]["nfe_per_block"]["median"] == 2.0
    assert summary["figures"]["tokens_per_nfe"]["median"] == 40 / 5


def test_the_first_token_is_there_when_the_run_that_made_it_ends():
    assert text().first_s == pytest.approx(10.02 + 0.015 - 9.998)  # behind the prefill
    whole = [run("denoise", 10.0, committed=24)]
    found = text(whole, tokens=24)
    assert found.first_s == found.first_block_s == pytest.approx(10.0 + 0.015 - 9.998)
    assert text([run("denoise", 10.0)], tokens=0).first_s == 0.0


def test_a_text_of_one_block_needs_no_commit():
    steps = [run("denoise", 10.0, committed=4), run("denoise", 10.1, committed=6)]
    found = text(steps, tokens=10, total=0.53)
    assert found.num_blocks == 1
    assert found.first_block_s == pytest.approx(10.1 + 0.015 - 9.998)


def test_a_run_over_two_blocks_is_no_step_of_one():
    steps = [run("denoise", 10.0, committed=24), run("advance", 10.1, rows=64, committed=1)]
    found = text(steps, tokens=25)
    assert found.num_blocks == 2
    assert summarise([found])["figures"]["engine_ms_per_step"]["count"] == 1
    assert [(p["phase"], p["dims"]["rows"]) for p in summarise([found])["phases"]] == [
        ("advance", 64), ("denoise", 32),
    ]  # fmt: skip


def test_a_causal_text_has_no_blocks():
    steps = [run("prefill", 1.0, block=None), *(run("denoise", 1.1, block=None) for _ in range(5))]
    assert text(steps).num_blocks == 0
    assert summarise([text(steps)])["figures"]["nfe_per_block"]["count"] == 0


def test_quartiles_are_interpolated():
    found = spread([4.0, 1.0, 3.0, 2.0], "ms")
    assert [found[k] for k in ("low", "median", "high", "count")] == [1.75, 2.5, 3.25, 4]
    assert spread([], "ms")["count"] == 0
    assert spread([7.0], "ms")["low"] == 7.0


def test_engine_times_are_grouped_by_phase_and_shape():
    phases = summarise([text(), text()])["phases"]
    assert [(p["phase"], p["count"]) for p in phases] == [
        ("commit", 2), ("denoise", 6), ("prefill", 2),
    ]  # fmt: skip
    assert phases[0]["median"] == pytest.approx(10.0)


def test_json_holds_every_stage_and_every_step():
    found = text().to_json()
    assert list(found["stages"]) == list(STAGES)
    assert found["steps"][0] == ["prefill", "denoise (rows 32, context 128)", 10.0]
    assert found["tokens_per_nfe"] == 8.0
