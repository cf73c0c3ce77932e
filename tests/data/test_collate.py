import pytest
import torch

from gipo_mc.data.collate import to_sequences


def test_rows_are_right_padded_to_the_longest():
    s = to_sequences([(1, 2), (3,)], [(4,), (5, 6, 0)], pad_id=9)
    assert s.tokens_BL.tolist() == [[1, 2, 4, 9], [3, 5, 6, 0]]
    assert s.prompt_length_B.tolist() == [2, 1] and s.response_length_B.tolist() == [1, 3]
    assert {t.dtype for t in (s.tokens_BL, s.prompt_length_B, s.response_length_B)} == {torch.int64}


def test_empty_responses_and_empty_batches():
    s = to_sequences([[1, 2]], [[]], pad_id=0)
    assert s.tokens_BL.tolist() == [[1, 2]] and s.response_length_B.tolist() == [0]
    assert to_sequences([], [], pad_id=0).tokens_BL.shape == (0, 0)


def test_rows_of_a_batch_cut_the_padding_they_share():
    s = to_sequences([(1, 2), (3,)], [(4,), (5, 6, 0)], pad_id=9).rows(torch.tensor([0]))
    assert s.tokens_BL.tolist() == [[1, 2, 4]]


def test_what_no_model_can_take_is_refused():
    with pytest.raises(ValueError, match="2 prompts, but 1 responses"):
        to_sequences([[1], [2]], [[3]], pad_id=0)
    with pytest.raises(ValueError, match="at least one token"):
        to_sequences([[]], [[3]], pad_id=0)
