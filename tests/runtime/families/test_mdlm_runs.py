"""Which runs masked diffusion takes: blocks, their storing, windows, gaps."""

import numpy as np
import pytest
from bound_ops import OpsWith
from dlm_edge.runtime.families.table import load_model
from dlm_edge.runtime.generate import generate
from dlm_edge.runtime.ops.unmask import UNMASK
from dlm_edge.runtime.ops.unmask.host import NumpyUnmask
from hypothesis import given, settings
from hypothesis import strategies as st
from manifests import find_shape
from masked_decodes import BLOCK_RULES, MASK, PAD, V, decode, infill, never_ending, request
from rules import decoding
from table_engines import TableEngines, make_manifest


def test_a_run_uses_the_smallest_context_that_holds_the_committed():
    _, _, engines = decode(request(max_tokens=40), [(8, 8), (8, 16), (8, 64)])
    for block, context, start, ids in engines.runs:
        rows = start if MASK in ids else start + block
        assert context == min(c for c in (8, 16, 64) if c >= rows)


def test_prompt_blocks_are_prefilled_and_its_tail_shares_the_first_block():
    prompt = (0, *range(3, 21))  # 19 tokens: two blocks and three
    _, _, engines = decode(request(prompt_ids=prompt, max_tokens=8))
    assert [run[2:] for run in engines.runs[:2]] == [(0, prompt[:8]), (8, prompt[8:16])]
    assert engines.runs[2][3] == (*prompt[16:], *[MASK] * 5)


def test_finished_blocks_are_stored_by_one_clean_run_and_the_last_is_not():
    result, _, engines = decode(request(prompt_ids=(0,), max_tokens=24))
    clean = [run for run in engines.runs if MASK not in run[3]]
    text = result.token_ids[:24]
    assert [run[3] for run in clean] == [text[:8], text[8:16], text[16:24]]
    assert len([run for run in engines.runs if run[2] == 24]) >= 1  # the last block, of one token
    assert engines.runs[-1][3].count(MASK) == 8


def test_positions_behind_the_limit_stay_masked_and_cost_nothing():
    settings = decoding(rule="low_confidence")
    result, _, engines = decode(request(prompt_ids=(0,), max_tokens=3, settings=settings))
    assert len(result.new_token_ids) == 3
    assert result.nfe == 3
    assert all(run[3][4:] == (MASK,) * 4 for run in engines.runs)


def test_an_end_token_ends_the_text_once_all_before_it_is_committed():
    def ends_at_twelve(prefix, block):
        logits = never_ending()(prefix, block)
        position = len(prefix) + np.arange(len(block))
        logits[position == 12, 0] = 60  # the surest of all: committed long before its left
        return logits

    result, spans, engines = decode(request(max_tokens=60), denoiser=ends_at_twelve)
    assert result.finish_reason == "end"
    assert len(result.token_ids) == 12
    assert 0 not in result.new_token_ids
    assert max(run[2] for run in engines.runs) == 8
    assert sum(len(span.token_ids) for span in spans) == 7


def test_first_hitting_takes_one_run_per_token():
    settings = decoding(rule="first_hitting")
    result, _, _ = decode(request(prompt_ids=(0,), max_tokens=31, settings=settings))
    assert result.nfe == 31 + 3  # three commit runs
    assert len(result.new_token_ids) == 31


def test_steps_without_change_run_no_graph_and_change_no_token():
    settings = decoding(rule="ancestral", steps=500)
    _, _, engines = decode(request(prompt_ids=(0,), max_tokens=15, settings=settings))
    denoised = [run for run in engines.runs if MASK in run[3]]
    assert len(denoised) <= 15
    assert len({run[2:] for run in denoised}) == len(denoised)  # no input twice


def test_ancestral_with_the_cache_equals_ancestral_without():
    settings = decoding(rule="ancestral", steps=100)
    cached, _, _ = decode(request(settings=settings))
    runs = []

    class Uncached(NumpyUnmask):
        """Runs the engine again before every sampling, as a loop without the cache would."""

        def sample(self, logits, canvas):
            engine = engines.engine(find_shape(engines.specs, "denoise", 8, 64))
            engine.inputs["ids"][...] = canvas.ids
            engine.run()
            runs.append(1)
            super().sample(engine.outputs["logits"], canvas)

    engines = TableEngines(never_ending(), [(8, 64)], V)
    start = engines.engine(find_shape(engines.specs, "denoise", 8, 64))
    assert start is engines.engine(find_shape(engines.specs, "denoise", 8, 64))
    plain = generate(
        load_model(make_manifest(engines), engines, OpsWith(UNMASK, Uncached())),
        request(settings=settings),
    )
    assert plain.token_ids == cached.token_ids
    assert len(runs) > cached.nfe


@pytest.mark.parametrize("rule", ["ancestral", "threshold"])
def test_a_graph_that_sees_time_is_told_the_mask_chance_of_every_run(rule):
    engines = TableEngines(never_ending(), [(8, 64)], V, timed=True)
    settings = decoding(rule=rule, steps=20 if rule == "ancestral" else None)
    asked = request(prompt_ids=(0, *range(5, 12)), max_tokens=16, settings=settings)
    generate(load_model(make_manifest(engines), engines), asked)
    for time, (_, _, _, ids) in zip(engines.times, engines.runs, strict=True):
        assert (time == time[0]).all()
        if MASK not in ids:
            assert time[0] == 0
        elif rule == "threshold":
            assert time[0] == ids.count(MASK) / 8
    if rule == "ancestral":  # every step runs: what the graph sees has changed
        starts = [run[2] for run in engines.runs if MASK in run[3]]
        told = [time[0] for time in engines.times if time[0] > 0]
        first_block = told[: starts.count(8)]
        assert np.allclose(first_block, 0.999 * (1 - np.arange(len(first_block)) / 20))


@settings(max_examples=40)
@given(
    st.sampled_from(BLOCK_RULES),
    st.integers(1, 30),
    st.integers(0, 60),
    st.booleans(),
    st.integers(0, 1000),
)
def test_storing_a_block_and_beginning_the_next_in_one_run_changes_no_token(
    rule, num_prompt, max_tokens, timed, seed
):
    steps = 5 if rule == "ancestral" else None
    asked = request(
        prompt_ids=(0, *(3 + i % 20 for i in range(num_prompt - 1))),
        max_tokens=max_tokens,
        settings=decoding(rule=rule, temperature=1.0, steps=steps),
        seed=seed,
    )
    results, told = [], []
    for shapes in ([(8, 64)], [(8, 64), (16, 64)], [(8, 16), (8, 64), (16, 16), (16, 64)]):
        engines = TableEngines(never_ending(), shapes, V, timed=timed, splits=True)
        manifest = make_manifest(engines, block_sizes=(8,))
        results.append(generate(load_model(manifest, engines), asked))
        told.append([time[-1] for time, run in zip(engines.times, engines.runs, strict=False)
                     if MASK in run[3]])  # fmt: skip
    assert len({(result.token_ids, result.approximate) for result in results}) == 1
    assert told[0] == told[1] == told[2]
    assert results[1].nfe <= results[0].nfe
    if num_prompt + max_tokens > 16 and not results[0].approximate and max_tokens:
        assert results[1].nfe < results[0].nfe


def test_the_double_shape_is_chosen_neither_for_decoding_nor_for_infilling():
    engines = TableEngines(never_ending(), [(8, 64), (16, 64), (64, 8)], V, splits=True)
    manifest = make_manifest(engines, block_sizes=(8, 64))
    generate(load_model(manifest, engines), request(max_tokens=30))
    assert {run[0] for run in engines.runs if MASK in run[3][:8]} == {8}
    engines.runs.clear()
    template = (0, 5, MASK, MASK, 6, 7, 8, 9, 10, 11)
    generate(load_model(manifest, engines), request(template_ids=template))
    assert {run[0] for run in engines.runs} == {64}


def test_a_text_beyond_the_context_slides_on_and_says_so():
    short, _, _ = decode(request(max_tokens=19), [(8, 16)])
    assert not short.approximate
    long, _, engines = decode(request(max_tokens=100), [(8, 16)])
    assert long.approximate
    assert len(long.new_token_ids) == 100
    assert long.token_ids[:24] == short.token_ids
    assert max(run[2] for run in engines.runs) == 16


def test_the_window_also_slides_at_the_last_position_the_model_knows():
    result, _, engines = decode(request(max_tokens=50), [(8, 64)], max_position=32)
    assert result.approximate
    assert max(start + block for block, _, start, _ in engines.runs) == 32


def test_a_prompt_longer_than_the_context_keeps_its_tail():
    prompt = (0, *(3 + i % 30 for i in range(70)))
    result, _, engines = decode(request(prompt_ids=prompt), [(8, 16)])
    assert result.approximate
    assert result.token_ids[:71] == prompt
    assert engines.runs[0][3] == prompt[-8:]  # half the window of 24, in whole blocks


def test_a_whole_canvas_continues_in_halves():
    settings = decoding(temperature=1.0, block_size=64)
    result, _, engines = decode(request(max_tokens=100, settings=settings))
    assert {run[:3] for run in engines.runs} == {(64, 8, 0)}
    assert len(result.new_token_ids) == 100
    assert result.approximate


@settings(max_examples=40)
@given(
    st.sampled_from(BLOCK_RULES),
    st.sampled_from([0.0, 1.0]),
    st.sets(st.integers(1, PAD - 1), max_size=PAD - 2),
    st.booleans(),
)
def test_ids_that_the_tokenizer_lacks_are_never_generated(rule, heat, missing, gaps):
    asked = request(
        settings=decoding(rule=rule, temperature=heat),
        banned_ids=tuple(missing),
        template_ids=(0, *[MASK] * 20) if gaps else None,
    )
    result, _, _ = decode(asked)
    generated = result.token_ids[1:] if gaps else result.new_token_ids
    assert generated
    assert not missing & set(generated)


def test_infilling_keeps_fixed_tokens_and_fills_every_gap():
    template = (0, 4, 5, MASK, MASK, 6, 7, MASK, 8, 9, 10, 11)
    result, spans, engines = infill(template)
    assert len(result.token_ids) == len(template)
    for token, given_token in zip(result.token_ids, template, strict=True):
        assert token == given_token or given_token == MASK
    filled = [t for t, g in zip(result.token_ids, template, strict=True) if g == MASK]
    assert not {0, MASK, PAD} & set(filled)
    assert result.new_token_ids == result.token_ids
    assert engines.runs[0][3] == (*template, 0, *[MASK] * 51)
    assert tuple(t for span in spans for t in span.token_ids) == result.token_ids


def test_infilling_takes_the_smallest_canvas_and_sees_both_sides():
    _, _, engines = infill((0, 4, MASK, 6))
    assert engines.runs[0][:3] == (8, 16, 0)
    texts = {infill((0, 4, MASK, MASK, right))[0].token_ids[2:4] for right in range(5, 15)}
    assert len(texts) > 1


def test_a_template_that_ends_its_text_gets_no_second_end_token():
    _, _, engines = infill((0, 4, MASK, 6, 0))
    assert engines.runs[0][3] == (0, 4, MASK, 6, 0, MASK, MASK, MASK)


def test_a_template_without_gaps_runs_nothing():
    result, _, engines = infill((0, 4, 5))
    assert result.token_ids == (0, 4, 5)
    assert not engines.runs
