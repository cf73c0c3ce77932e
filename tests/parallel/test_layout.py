"""Rows of a batch among the ranks."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gipo_mc.parallel.layout import Layout, split_rows

ALONE = Layout(1, 0, 1, 1, 1, 0, 0, 0, False, torch.device("cpu"))


@given(st.integers(0, 200), st.integers(1, 17))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_rows_are_split_in_order_without_loss(count: int, parts: int) -> None:
    blocks = split_rows(count, parts)
    assert len(blocks) == parts
    assert [row for block in blocks for row in block] == list(range(count))
    sizes = [len(block) for block in blocks]
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


def test_uneven_blocks_by_hand() -> None:
    assert split_rows(7, 3) == [range(3), range(3, 5), range(5, 7)]
    assert split_rows(1, 2) == [range(1), range(1, 1)]


def test_stages_and_length_multiple() -> None:
    assert ALONE.is_main and ALONE.is_first_stage and ALONE.is_last_stage and ALONE.length_multiple == 1
    middle = replace(ALONE, world_size=6, rank=2, pipeline=3, pipeline_rank=1, tensor=2)
    assert not (middle.is_main or middle.is_first_stage or middle.is_last_stage)
    assert middle.length_multiple == 1 and replace(middle, sequence=True).length_multiple == 2


def test_describe_names_every_size() -> None:
    layout = replace(ALONE, tensor=2, pipeline=3, data=4, sequence=True)
    assert layout.describe() == "data 4 x pipeline 3 x tensor 2 with sequence parallelism on cpu"
