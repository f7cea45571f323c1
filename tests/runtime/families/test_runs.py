"""Which graph runs a text takes, as `--auto` and reports count them."""

from collections import defaultdict

import pytest
from dlm_edge.runtime.families.table import find_family
from draft_engines import head_spec, step_spec
from manifests import denoise_spec, plain_manifest, score_spec

V = 30


def runs(family, specs, **asked):
    """{(graph, rows, context): runs} of a text."""
    found = defaultdict(float)
    manifest = plain_manifest(specs, family=family)
    for spec, count in find_family(family).runs(manifest, specs, **asked):
        found[spec.name, spec.rows, spec.context] += count
    return dict(found)


def denoise(*shapes, splits=False):
    return [
        denoise_spec(rows, context, vocab=V, cache=(1, 1, 2, 1, 4), splits=splits)
        for rows, context in shapes
    ]


def test_a_block_takes_the_smallest_bucket_that_holds_what_is_committed():
    # Blocks at 0, 4 and 8: the first two see the small bucket.
    found = runs("mdlm", denoise((4, 4), (4, 8)), block=4, positions=12, tokens_per_run=1.0)
    assert found == {("denoise", 4, 4): 8.0, ("denoise", 4, 8): 4.0}


def test_more_tokens_per_run_take_fewer_runs_but_never_less_than_one_for_a_block():
    specs = denoise((4, 8))
    assert runs("mdlm", specs, block=4, positions=8, tokens_per_run=2.0) == {("denoise", 4, 8): 4}
    assert runs("mdlm", specs, block=4, positions=8, tokens_per_run=9.0) == {("denoise", 4, 8): 2}


def test_one_run_of_a_block_is_the_one_that_stores_the_block_before():
    found = runs(
        "mdlm", denoise((4, 8), (8, 8), splits=True), block=4, positions=8, tokens_per_run=1.0
    )
    assert found == {("denoise", 4, 8): 6.0, ("denoise", 8, 8): 2.0}


def test_behind_the_largest_context_each_block_costs_one_run_more():
    found = runs("mdlm", denoise((4, 4)), block=4, positions=16, tokens_per_run=1.0)
    assert found == {("denoise", 4, 4): 4 * 4 + 2}


def test_a_causal_text_takes_a_run_per_token_and_reads_half_a_window_again():
    found = runs("ar", denoise((1, 8), (8, 8)), block=None, positions=16, tokens_per_run=1.0)
    assert found == {("denoise", 1, 8): 16.0, ("denoise", 8, 8): 1.0}


def test_drafting_takes_a_head_to_verify_and_one_to_draft_again():
    specs = [step_spec(block, 64, V, split=True) for block in (None, 4)]
    specs += [head_spec(rows, V) for rows in (1, 4)]
    found = runs("tidar", specs, block=4, positions=30, tokens_per_run=3.0)
    assert found == pytest.approx({("step", 20, 64): 10, ("head", 1, 0): 10, ("head", 4, 0): 10})


def test_a_score_model_takes_its_steps_per_canvas():
    specs = [score_spec(length, V) for length in (8, 16)]
    found = runs("sedd", specs, block=None, positions=16, tokens_per_run=2.0)
    assert found == {("score", 16, 0): 8.0}
    # Two canvases behind the first: each makes half of its positions.
    assert runs("sedd", specs, block=8, positions=16, tokens_per_run=2.0) == {("score", 8, 0): 12}


def test_the_rows_that_are_sampled_are_those_of_the_text_that_changes():
    assert find_family("mdlm").text_rows(denoise((4, 8))[0]) == 4
    assert find_family("ar").text_rows(denoise((8, 8))[0]) == 1
    assert find_family("sedd").text_rows(score_spec(8, V)) == 8
    drafting, alone = (step_spec(block, 64, V, split=False) for block in (4, None))
    assert find_family("tidar").text_rows(drafting) == 8
    assert find_family("tidar").text_rows(alone) == 1
