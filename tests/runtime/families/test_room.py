"""How long a text may get before its window slides: what families say is what their rules do."""

from types import SimpleNamespace

import pytest
from dlm_edge.runtime.families.base import Request
from dlm_edge.runtime.families.table import find_family, load_model
from dlm_edge.runtime.generate import generate
from manifests import score_spec
from rules import decoding
from table_engines import TableEngines, hashed, make_manifest

V = 30


def slides(family, manifest, engines, settings, length):
    """Whether one token behind so many is written with a part of them out of sight."""
    request = Request(
        prompt_ids=(0, *[3 + i % 20 for i in range(length - 1)]), max_tokens=1, seed=0,
        sample_index=0, settings=settings,
    )  # fmt: skip
    return generate(load_model(manifest, engines), request).approximate


@pytest.mark.parametrize(
    ("family", "rule", "shapes", "block", "max_position", "positions"),
    [
        # A text decodes at one block size: the widest graph says nothing about the others.
        ("mdlm", "threshold", [(8, 16), (32, 64)], 8, 128, 24),
        ("mdlm", "threshold", [(8, 16), (32, 64)], 32, 128, 96),
        ("mdlm", "threshold", [(8, 16), (32, 64)], None, 128, 96),
        ("mdlm", "threshold", [(8, 64), (64, 8)], 8, 64, 64),
        ("mdlm", "threshold", [(8, 64), (64, 8)], 8, 40, 40),
        # The smallest of the shapes' largest contexts, and the newest token.
        ("ar", "next_token", [(1, 32), (8, 32)], None, 128, 33),
        ("ar", "next_token", [(1, 32), (8, 64)], None, 128, 33),
        ("ar", "next_token", [(1, 32), (8, 32)], None, 20, 20),
    ],
)
def test_one_position_less_fits_and_this_many_slide(
    family, rule, shapes, block, max_position, positions
):
    engines = TableEngines(hashed(V, causal=family == "ar"), shapes, V)
    manifest = make_manifest(engines, family=family, max_position=max_position)
    settings = decoding(rule=rule, block_size=block)
    found = find_family(family).positions(manifest, engines.specs, settings)
    assert found == positions
    assert not slides(family, manifest, engines, settings, positions - 1)
    over = positions + 1 if found == max_position else positions
    assert slides(family, manifest, engines, settings, over)


@pytest.mark.parametrize(("block", "positions"), [(None, 16), (8, 8), (16, 16)])
def test_a_score_models_text_has_the_canvas_asked_for_or_the_longest(block, positions):
    specs = [score_spec(size, V) for size in (8, 16)]
    settings = decoding(rule="tweedie", block_size=block)
    assert find_family("sedd").positions(SimpleNamespace(), specs, settings) == positions
