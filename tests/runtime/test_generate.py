from dataclasses import replace

import pytest
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.runtime.families.table import load_model
from dlm_edge.runtime.generate import Generation, generate
from hypothesis import given, settings
from hypothesis import strategies as st
from masked_decodes import BLOCK_RULES, MASK, PAD, SHAPES, V, decode, never_ending, request
from rules import decoding
from table_engines import TableEngines, hashed, make_manifest


@given(
    st.sampled_from(BLOCK_RULES),
    st.sampled_from([0.0, 1.0]),
    st.integers(1, 20),
    st.integers(0, 60),
    st.integers(0, 2**64 - 1),
)
def test_every_decode_ends_with_text_only(rule, heat, num_prompt, max_tokens, seed):
    prompt = (0, *(3 + i % 20 for i in range(num_prompt - 1)))
    settings = decoding(rule=rule, temperature=heat)
    result, spans, _ = decode(
        request(prompt_ids=prompt, max_tokens=max_tokens, settings=settings, seed=seed),
        denoiser=hashed(V),
    )
    assert result.token_ids[: len(prompt)] == prompt
    assert not {MASK, PAD, 0} & set(result.new_token_ids)
    assert len(result.new_token_ids) <= max_tokens
    if result.finish_reason == "length":
        assert len(result.new_token_ids) == max_tokens
    text, position = [], len(prompt)
    for span in spans:
        assert span.committed
        assert span.position == position + len(text)
        text.extend(span.token_ids)
    assert tuple(text) == result.new_token_ids


@settings(max_examples=30)
@given(st.sampled_from(BLOCK_RULES), st.integers(0, 1000))
def test_tokens_do_not_depend_on_the_context_buckets_or_what_ran_before(rule, seed):
    asked = request(settings=decoding(rule=rule, temperature=1.0), seed=seed)
    first, _, engines = decode(asked, [(8, 64)])
    second, _, _ = decode(asked, [(8, 8), (8, 16), (8, 24), (8, 64)])
    third = generate(load_model(make_manifest(engines), engines), asked)  # a used cache
    assert first.token_ids == second.token_ids == third.token_ids


@pytest.mark.parametrize("rule", BLOCK_RULES)
def test_samples_differ_by_index_and_by_seed(rule):
    settings = decoding(rule=rule, temperature=1.0)
    texts = {
        decode(request(settings=settings, seed=seed, sample_index=index))[0].token_ids
        for seed in (0, 1, 2**40)
        for index in (0, 1)
    }
    assert len(texts) == 6


def test_provisional_spans_show_the_canvas_after_every_step():
    asked = request(provisional=True, prompt_ids=(0, 5, 6), max_tokens=9)
    _, spans, engines = decode(asked)
    provisional = [span for span in spans if not span.committed]
    assert len(provisional) == len([run for run in engines.runs if MASK in run[3]])
    for span in provisional:
        assert span.fixed == tuple(token != MASK for token in span.token_ids)
        assert span.position in (0, 8)


def test_leaving_early_keeps_what_was_committed():
    engines = TableEngines(never_ending(), SHAPES, V)
    generation = Generation(load_model(make_manifest(engines), engines), request(max_tokens=50))
    text = []
    for span in generation:
        text.extend(span.token_ids)
        if len(text) >= 10:
            break
    assert generation.result.finish_reason == "interrupted"
    assert generation.result.new_token_ids == tuple(text)


def test_stage_times_add_up_and_runs_are_counted():
    result, _, engines = decode(request())
    assert result.nfe == len(engines.runs)
    stages = ("prepare", "engine", "update", "host")
    assert sum(result.seconds[stage] for stage in stages) == pytest.approx(result.seconds["total"])
    assert result.tokens_per_nfe == 30 / result.nfe


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_ids": ()},
        {"prompt_ids": (0, V)},
        {"prompt_ids": (0, -1)},
        {"prompt_ids": (0, MASK)},
        {"prompt_ids": (0, PAD)},
        {"max_tokens": -1},
        {"seed": -1},
        {"sample_index": 2**32},
        {"template_ids": (0, *[MASK] * 64)},
        {"template_ids": (0, PAD)},
        {"template_ids": ()},
        {"settings": decoding(rule="next_token")},
        {"settings": decoding(block_size=16)},
    ],
)
def test_requests_that_cannot_be_served_are_refused_in_one_line(fields):
    with pytest.raises(ConfigError) as caught:
        decode(request(**fields))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fields", [{"family": "unheard of"}, {"mask_token_id": None}])
def test_models_that_cannot_be_decoded_are_refused(fields):
    engines = TableEngines(hashed(V), SHAPES, V)
    manifest = replace(make_manifest(engines), **fields)
    with pytest.raises(ConfigError):
        generate(load_model(manifest, engines), request())
