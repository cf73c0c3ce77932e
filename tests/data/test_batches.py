import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gipo_mc.data.batches import batch_indices


@settings(max_examples=50, deadline=None, derandomize=True)
@given(size=st.integers(1, 13), rows=st.integers(1, 11), seed=st.integers(0, 5))
def test_every_row_comes_once_an_epoch_whatever_the_batch_size(size, rows, seed):
    steps = -(-3 * rows // size)
    stream = np.concatenate([batch_indices(seed, "x", step, size, rows) for step in range(steps)])
    for epoch in range(3):
        assert sorted(stream[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def test_a_step_is_a_pure_function_and_does_not_depend_on_the_batch_size():
    late = batch_indices(3, "x", 7, 5, 12)
    assert late.dtype == np.int64
    np.testing.assert_array_equal(late, batch_indices(3, "x", 7, 5, 12))
    np.testing.assert_array_equal(late, np.concatenate([batch_indices(3, "x", i, 1, 12) for i in range(35, 40)]))


def test_seeds_purposes_and_epochs_have_their_own_order():
    orders = [
        batch_indices(3, "x", 0, 50, 50),
        batch_indices(4, "x", 0, 50, 50),
        batch_indices(3, "y", 0, 50, 50),
        batch_indices(3, "x", 1, 50, 50),
    ]
    assert len({tuple(order) for order in orders}) == 4


def test_a_returned_batch_can_be_changed_without_changing_the_next():
    batch_indices(1, "x", 0, 4, 4)[:] = 0
    assert sorted(batch_indices(1, "x", 0, 4, 4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("step, size, rows", [(0, 0, 5), (0, 5, 0), (-1, 5, 5)])
def test_nonsense_is_refused(step, size, rows):
    with pytest.raises(ValueError, match="batch_indices needs"):
        batch_indices(1, "x", step, size, rows)
