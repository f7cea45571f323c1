from __future__ import annotations

import numpy as np
import pytest
from dlm_edge.runtime.errors import ConfigError, DataError
from dlm_edge.train.data.batches import Batches, held_out_batch
from dlm_edge.train.data.shards import TokenStream


def stream(num_documents: int = 20, size: int = 10) -> TokenStream:
    """Documents of equal size over distinct ids, so that a row says where it came from."""
    total = num_documents * size
    starts = np.arange(0, total, size, dtype=np.int64)
    return TokenStream(tokens=np.arange(total, dtype=np.uint16), starts=starts, sha256="")


def test_a_step_is_a_function_of_seed_and_step_alone():
    first = Batches(stream(), context=8, batch_size=4, seed=3)
    for step in range(5):
        first.batch(step).ids.numpy()
    again = Batches(stream(), context=8, batch_size=4, seed=3)
    assert np.array_equal(first.batch(9).ids.numpy(), again.batch(9).ids.numpy())
    other = Batches(stream(), context=8, batch_size=4, seed=4)
    assert not np.array_equal(other.batch(9).ids.numpy(), again.batch(9).ids.numpy())


def test_half_of_the_sequences_start_at_a_document():
    batches = Batches(stream(), context=8, batch_size=16, seed=0)
    for step in range(4):
        rows = batches.batch(step).ids.numpy()
        assert rows.shape == (16, 8)
        assert rows.dtype == np.int64
        assert (rows[::2, 0] % 10 == 0).all()


def test_every_document_start_comes_once_per_pass():
    batches = Batches(stream(20), context=8, batch_size=8, seed=0)
    firsts = np.concatenate([batches.batch(step).ids.numpy()[::2, 0] for step in range(5)])
    assert sorted(firsts) == list(range(0, 200, 10))


def test_rows_are_contiguous_text_and_never_leave_the_stream():
    batches = Batches(stream(3), context=25, batch_size=8, seed=0)
    for step in range(20):
        rows = batches.batch(step).ids.numpy()
        assert (np.diff(rows, axis=1) == 1).all()


def test_text_without_a_usable_document_start_is_read_at_random_offsets():
    one = TokenStream(
        tokens=np.arange(50, dtype=np.uint16), starts=np.array([49], np.int64), sha256=""
    )
    rows = Batches(one, context=10, batch_size=8, seed=0).batch(0).ids.numpy()
    assert len(set(rows[:, 0])) > 1


def test_held_out_rows_overlap_by_the_token_that_is_given():
    rows = held_out_batch(stream(3), context=8, max_rows=100).ids.numpy()
    assert rows.shape == (4, 8)
    assert rows[1:, 0].tolist() == rows[:-1, -1].tolist()
    few = held_out_batch(stream(), context=8, max_rows=3).ids.numpy()
    assert few.shape == (3, 8)
    assert few[0, 0] == 0


def test_the_source_of_a_sequence_is_the_text_before_it():
    batches = Batches(stream(4), context=8, batch_size=6, seed=0, fields={"source": 5})
    for step in range(5):
        batch = batches.batch(step)
        assert batch.ids.shape == (6, 8)
        assert batch.fields["source"].shape == (6, 5)
        windows = np.concatenate([batch.fields["source"].numpy(), batch.ids.numpy()], axis=1)
        assert (np.diff(windows, axis=1) == 1).all()
    held = held_out_batch(stream(4), context=8, max_rows=100, fields={"source": 5})
    assert held.ids[0, 0] == 5
    assert held.ids[1:, 0].tolist() == held.ids[:-1, -1].tolist()
    assert len(held[1:3].fields["source"]) == len(held[1:3]) == 2


def test_a_field_that_text_has_not_is_refused_and_so_is_too_short_a_text():
    with pytest.raises(ConfigError, match="needs latents"):
        Batches(stream(), context=8, batch_size=2, seed=0, fields={"latents": 4})
    with pytest.raises(DataError, match="30 tokens, and a sample takes 34"):
        held_out_batch(stream(3), context=8, max_rows=2, fields={"source": 26})
