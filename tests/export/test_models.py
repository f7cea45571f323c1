from types import SimpleNamespace

import pytest
from dlm_edge.export.models import untrained_blocks


@pytest.mark.parametrize(
    ("family", "blocks", "said"),
    [
        ("mdlm", (16, 48, 64), "note: --block 48,64 was not trained (16, 32 were): expect worse"),
        ("mdlm", (16, "full"), ""),
        ("mdlm", (), ""),
        ("ar", (48,), ""),
        ("tidar", (3,), ""),
    ],
)
def test_a_block_size_that_was_not_trained_is_told(family, blocks, said):
    note = untrained_blocks(SimpleNamespace(family=family, block_sizes=(16, 32)), blocks)
    assert note.startswith(said)
    assert bool(note) == bool(said)
