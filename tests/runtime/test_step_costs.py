"""What a step costs on a board, counted on its stand-in: every family, its weights untrained.

From the second text of a shape on, nothing is allocated; a step is one replay of a captured graph;
logits never leave the device, and no step waits for it.
"""

import pytest
from dlm_edge.runtime.pipeline import Pipeline
from emulation.board import make_board

MODELS = {
    "mdlm": {"block_sizes": "4,full", "context": 64},
    "mdlm that sees time": {"block_sizes": "4,full", "context": 64, "time_conditioning": True},
    "ar": {"context": 64},
    "sedd": {"context": 32, "mask_token_id": 1},
    "tidar": {"block_sizes": "2,4", "context": 64, "mask_token_id": 1},
}
SHAPES = {
    "mdlm": ((4,), (64,)),
    "ar": ((4,), (64,)),
    "sedd": ((32,), ()),
    "tidar": ((4,), (64,)),
}
SETTINGS = {
    "mdlm": {"rule": "low_confidence"},
    "mdlm that sees time": {"rule": "ancestral"},
    "ar": {},
    "sedd": {"rule": "tweedie", "steps": 24},
    "tidar": {},
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    pytest.importorskip("torch")
    from dlm_edge.export.pack import ExportSettings, export_checkpoint
    from tiny_checkpoint import make_checkpoint

    folder, found = tmp_path_factory.mktemp("costs"), {}
    for name, options in MODELS.items():
        family = name.split()[0]
        where = folder / name.replace(" ", "-")
        make_checkpoint(where, family, dim=32, num_layers=1, **options)
        blocks, contexts = SHAPES[family]
        settings = ExportSettings(
            target="orin-nano", precision="fp32", blocks=blocks, contexts=contexts
        )
        found[name] = str(where.with_suffix(".dlm"))
        export_checkpoint(where, where.with_suffix(".dlm"), settings)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_a_step_allocates_nothing_copies_no_logits_and_waits_for_nothing(
    bundles, name, monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    board = make_board(monkeypatch)
    with Pipeline.load(bundles[name], engine="tensorrt") as pipeline:
        asked = {"max_tokens": 24, "temperature": 1.0, **SETTINGS[name]}
        wanted = max(graph.tensor("logits").shape[-1] for graph in pipeline.manifest.graphs)
        for seed in range(2):
            pipeline.generate("abc", seed=seed, **asked).result()
        before = dict(board.device.counts)
        result = pipeline.generate("abc", seed=2, **asked).result()
        after = board.device.counts
        cost = {key: after[key] - before.get(key, 0) for key in after}
    # Token by token, a step is a block.
    num_blocks = result.nfe if name == "ar" else result.nfe // 4 + 1
    assert result.nfe >= 8
    assert cost["allocations"] == 0
    assert cost["captures"] <= 1  # a shape that the first texts did not come to
    assert cost["downloads"] <= 1 + result.nfe // 4  # a text's, or a block's, and never a step's
    assert cost["bytes_downloaded"] < 4 * wanted  # less than one row of logits
    assert cost["waits"] <= 3  # where a text takes over the last one's memory
    assert cost["replays"] >= result.nfe - result.nfe // 4
    # The rest, per text and per block: settings, a block's ids and time, where it starts.
    assert cost["uploads"] <= 13 + 3 * num_blocks
