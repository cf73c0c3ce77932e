"""Whether a shape fits a layout, the data and the tokenizer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gipo_mc.errors import ConfigError
from gipo_mc.models.families import read_shape
from gipo_mc.models.shape import ModelShape
from tests.models.tiny import config


def test_check_reports_every_misfit_with_numbers_and_fix() -> None:
    shape = read_shape(config())
    shape.check(2, 4, sequence_length=64, tokenizer_size=131)
    with pytest.raises(ConfigError) as error:
        shape.check(3, 3, sequence_length=65, tokenizer_size=132)
    message = str(error.value)
    assert "parallel.tensor=3 does not divide the model's 4 attention heads: use one of 1, 2, 4" in message
    assert (
        "parallel.tensor=3 neither divides the model's 2 key-value heads nor is a multiple of them: use one of 1, 2, 4"
        in message
    )
    assert "parallel.pipeline=3 does not divide the model's 4 layers: use one of 1, 2, 4" in message
    assert "65 tokens" in message and "64 positions" in message
    assert "ids up to 131" in message and "ends at 130" in message
    assert "feed-forward" not in message, "3 ranks do divide 48 columns"


def test_key_value_heads_may_be_fewer_than_the_ranks_that_share_them() -> None:
    shape = replace(read_shape(config()), heads=24, kv_heads=4, intermediate_size=96)
    fits = [n for n in range(1, 25) if _fits(shape, n)]
    assert fits == [1, 2, 4, 8], "12 and 24 do not divide the 256 rows of queries, keys and values"
    assert [shape.kv_heads_on(n) for n in fits] == [4, 2, 1, 1]
    with pytest.raises(ConfigError, match=r"tensor=12 does not divide the 256 rows of .* use one of 1, 2, 4, 8"):
        shape.check(12, 1)
    with pytest.raises(ConfigError, match="tensor=6 neither divides the model's 4 key-value heads nor is a multiple"):
        shape.check(6, 1)


def _fits(shape: ModelShape, tensor: int) -> bool:
    try:
        shape.check(tensor, 1)
    except ConfigError:
        return False
    return True


def test_the_padded_vocabulary_does_not_depend_on_common_tensor_sizes() -> None:
    shape = read_shape(config())
    assert {shape.padded_vocab(tensor) for tensor in (1, 2, 4, 8, 16)} == {192}
    assert shape.padded_vocab(3) == 192 and shape.padded_vocab(5) == 320
    assert read_shape(config(vocab_size=128256)).padded_vocab(8) == 128256


def test_end_ids_are_those_of_both_files_once_and_within_the_vocabulary() -> None:
    shape = replace(read_shape(config()), eos_token_id=(5, 9), generation='{"eos_token_id": [9, 7, 131, -1]}')
    assert shape.end_ids == (5, 9, 7)
    assert replace(shape, eos_token_id=None, generation="").end_ids == ()
    assert replace(shape, eos_token_id=5, generation='{"temperature": 1.0}').end_ids == (5,)
