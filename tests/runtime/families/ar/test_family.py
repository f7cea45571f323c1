import numpy as np
import pytest
from dlm_edge.runtime.errors import ConfigError
from dlm_edge.runtime.families.base import Request
from dlm_edge.runtime.families.table import decoding_settings, load_model
from dlm_edge.runtime.generate import generate
from rules import decoding
from table_engines import TableEngines, hashed, make_manifest

V = 30
TABLE = hashed(V, causal=True)


def run(shapes, *, prompt=(0, 4, 5, 6, 7), max_tokens=20, heat=0.0, banned=(), **fields):
    engines = TableEngines(TABLE, shapes, V)
    request = Request(
        prompt_ids=prompt, max_tokens=max_tokens, seed=2, sample_index=0,
        settings=decoding(rule="next_token", temperature=heat), banned_ids=banned,
    )  # fmt: skip
    manifest = make_manifest(engines, family="ar", **fields)
    return generate(load_model(manifest, engines), request), engines


def test_greedy_tokens_are_those_of_running_the_whole_text_again_and_again():
    result, _ = run([(1, 64), (8, 64)])
    text = [0, 4, 5, 6, 7]
    for _ in range(20):
        logits = TABLE(np.zeros(0, int), np.array(text))[-1].copy()
        logits[V - 2] = -np.inf
        token = int(logits.argmax())
        if token == 0:
            break
        text.append(token)
    assert list(result.token_ids) == text


def test_ids_that_the_tokenizer_lacks_are_never_generated():
    plain = run([(1, 64)])[0].new_token_ids
    missing = (plain[0], plain[5])
    assert not {*missing} & {*run([(1, 64)], banned=missing)[0].new_token_ids}


@pytest.mark.parametrize("heat", [0.0, 1.0])
def test_tokens_do_not_depend_on_block_or_context(heat):
    texts = {
        run(shapes, heat=heat)[0].token_ids
        for shapes in ([(1, 64)], [(1, 8), (1, 64), (8, 8), (8, 64)], [(4, 64)], [(1, 64), (2, 64)])
    }
    assert len(texts) == 1


def test_a_bundle_without_settings_is_decoded_by_the_familys_rule():
    engines = TableEngines(TABLE, [(1, 64)], V)
    manifest = make_manifest(engines, family="ar", decoding={})
    request = Request(prompt_ids=(0, 4, 5, 6, 7), max_tokens=20, seed=2, sample_index=0)
    result = generate(load_model(manifest, engines), request)
    assert result.token_ids == run([(1, 64)])[0].token_ids
    assert decoding_settings(manifest, {"temperature": 0.5}).name == "next_token"


def test_the_prompt_goes_through_the_largest_block_and_tokens_through_the_smallest():
    result, engines = run([(1, 64), (8, 64)], prompt=(0, *range(3, 21)))
    assert [run[0] for run in engines.runs[:3]] == [8, 8, 8]
    assert {run[0] for run in engines.runs[3:]} == {1}
    assert result.nfe == 3 + len(result.new_token_ids) - (result.finish_reason == "length")


def test_a_text_beyond_the_context_slides_on_and_says_so():
    never = dict(max_tokens=60)
    result, engines = run([(1, 16), (4, 16), (32, 8)], **never)
    if result.finish_reason == "length":
        assert result.approximate
        assert len(result.new_token_ids) == 60
    assert max(start for _, _, start, _ in engines.runs) < 16
    limited, engines = run([(1, 64), (4, 64)], max_position=12, **never)
    assert limited.approximate or limited.finish_reason == "end"
    assert max(start for _, _, start, _ in engines.runs) < 12


def test_what_a_causal_model_cannot_do_is_refused():
    engines = TableEngines(TABLE, [(1, 16)], V)
    manifest = make_manifest(engines, family="ar")
    base = {"prompt_ids": (0,), "max_tokens": 4, "seed": 0, "sample_index": 0}
    for fields in (
        {"template_ids": (0, 1)},
        {"settings": decoding(rule="threshold")},
        {"max_tokens": -1},
        {"prompt_ids": ()},
    ):
        with pytest.raises(ConfigError):
            generate(load_model(manifest, engines), Request(**{**base, **fields}))


def test_a_block_size_is_refused_by_the_name_of_its_option():
    with pytest.raises(ConfigError, match="block_size has no effect on rule next_token"):
        decoding(rule="next_token", block_size=8)
