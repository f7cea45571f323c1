"""Which rows of a draft-and-verify run the next tokens come from."""

import numpy as np
import pytest
from dlm_edge.calibration.recorder import _kept
from dlm_edge.runtime.families.tidar_layout import draft_layout, draft_rows


@pytest.mark.parametrize("block", [1, 2, 3, 5])
def test_they_are_the_kept_drafts_and_the_masks_of_their_proposal(block):
    rows = draft_rows(block)
    masked = np.arange(rows) >= block
    for count in range(1, block + 1):
        wanted = [*range(count), *range(count * block, count * block + block)]
        found = _kept(draft_layout(block).visible, masked, count)
        assert np.flatnonzero(found).tolist() == wanted
