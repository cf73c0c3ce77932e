"""A run of elements as boxes: whole, in order, each contiguous."""

from __future__ import annotations

from math import prod

import pytest
import torch

from gipo_mc.parallel.saving.boxes import Box, boxes


def test_a_run_over_rows_by_hand() -> None:
    """Of 4 rows of 3: the end of row 0, rows 1 and 2, the beginning of row 3."""
    assert boxes((4, 3), 2, 10) == [Box(2, (0, 2), (1, 1)), Box(3, (1, 0), (2, 3)), Box(9, (3, 0), (1, 1))]
    assert boxes((4, 3), 4, 5) == [Box(4, (1, 1), (1, 1))] and boxes((4, 3), 5, 5) == []


@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (1, 5), (5, 1), (2, 3, 4), (3, 1, 2)])
def test_boxes_are_the_run(shape: tuple[int, ...]) -> None:
    whole = torch.arange(prod(shape)).view(shape)
    for begin in range(prod(shape) + 1):
        for end in range(begin, prod(shape) + 1):
            found = boxes(shape, begin, end)
            parts = [whole[tuple(slice(o, o + s) for o, s in zip(b.offset, b.sizes, strict=True))] for b in found]
            assert [int(part.flatten()[0]) for part in parts] == [box.begin for box in found]
            assert [int(x) for part in parts for x in part.flatten()] == list(range(begin, end))
            assert len(found) <= max(1, 2 * len(shape) - 1)
