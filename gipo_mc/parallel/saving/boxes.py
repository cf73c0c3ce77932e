"""A piece of a flattened tensor as boxes, the form that a checkpoint can hold.

The distributed optimizer gives each data-parallel rank a run of elements of the flattened weights, which begins and
ends anywhere. A run is the end of a row, then whole rows, then the beginning of one; in more dimensions the same again
for each. So a rank writes what it holds as it lies in memory, and no rank has to gather a tensor of several.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple


class Box(NamedTuple):
    """begin: its first element in the flattened tensor, from which it lies contiguously."""

    begin: int
    offset: tuple[int, ...]
    sizes: tuple[int, ...]


def boxes(shape: tuple[int, ...], begin: int, end: int) -> list[Box]:
    """Elements `begin` to `end` of the flattened tensor of `shape`, in order: at most 2 d - 1 boxes in d dimensions."""
    if begin >= end:
        return []
    if len(shape) <= 1:
        return [Box(begin, (begin,)[: len(shape)], (end - begin,)[: len(shape)])]
    row = prod(shape[1:])
    first, last = -(-begin // row), end // row  # whole rows
    if first > last:  # within one row
        return _in_row(shape, last, begin, end)
    found = _in_row(shape, first - 1, begin, first * row)
    if first < last:
        zeros = (0,) * (len(shape) - 1)
        found.append(Box(first * row, (first, *zeros), (last - first, *shape[1:])))
    return found + _in_row(shape, last, last * row, end)


def _in_row(shape: tuple[int, ...], number: int, begin: int, end: int) -> list[Box]:
    at = number * prod(shape[1:])
    return [
        Box(at + box.begin, (number, *box.offset), (1, *box.sizes)) for box in boxes(shape[1:], begin - at, end - at)
    ]
