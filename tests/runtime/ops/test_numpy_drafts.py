"""One verification in NumPy: the token behind d_0 is p's, whatever q it was drafted from."""

import numpy as np
import pytest
from dlm_edge.runtime.ops.drafts import DRAFTS
from dlm_edge.runtime.ops.drafts.contract import DraftSpec
from dlm_edge.runtime.ops.host import NumpyOps
from rules import decoding

VOCAB, NUM = 8, 6000
P = np.array([2.0, 1.8, 1.5, 1.5, 1.0, 0.5, 0.0, 9.0])
Q = np.array([0.0, 6.0, 0.0, 1.0, 0.0, 2.0, -3.0, 9.0])
"""Flat and peaked, so that sums of weights differ by far; the last token is banned."""


def softmax(row, heat):
    shares = np.exp(row[:-1] / heat)
    return shares / shares.sum()


def found(index, p, q, heat):
    """Drafts d_1 of q behind a first token, and verifies it by p: the token, whether it is kept."""
    ops = NumpyOps().bind(DRAFTS)
    settings = decoding(rule="draft_verify", temperature=heat)
    drafts = ops.drafts(
        DraftSpec(
            block=2, vocab_size=VOCAB, sampling=settings.sampling, seed=7, sample_index=index,
            mask_token_id=VOCAB - 1, stops=(), banned=(VOCAB - 1,),
        )
    )  # fmt: skip
    ops.begin_drafts(drafts, start=0, position=0)
    ops.verify(p[None, None].astype(np.float32), drafts)
    ops.propose(np.stack([p, q])[None].astype(np.float32), drafts)
    ops.verify(np.stack([p, p])[None].astype(np.float32), drafts)
    verified = ops.verified(drafts)
    return verified.ids[0], verified.num_kept == 2


@pytest.mark.parametrize(("p", "q"), [(P, Q), (Q, P)], ids=["peaked drafts", "flat drafts"])
def test_the_verified_token_has_the_distribution_that_verifies_it(p, q):
    heat = 0.9
    tokens, kept = zip(*(found(index, p, q, heat) for index in range(NUM)), strict=True)
    shares, drafted = softmax(p, heat), softmax(q, heat)
    # Drafts are kept with the chance that the two distributions have in common.
    common = np.minimum(shares, drafted).sum()
    assert np.mean(kept) == pytest.approx(common, abs=4 * (common * (1 - common) / NUM) ** 0.5)
    counts = np.bincount(tokens, minlength=VOCAB)
    assert counts[-1] == 0
    cells = shares * NUM > 5
    statistic = ((counts[:-1] - shares * NUM) ** 2 / (shares * NUM))[cells].sum()
    assert statistic < 22.5  # 99.9 % of six degrees of freedom
