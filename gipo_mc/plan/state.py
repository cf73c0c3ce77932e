"""Bytes that a model takes as long as the run lasts: weights, gradients, optimizer state; and what a checkpoint holds.

Megatron keeps gradients in one float32 buffer. Under the distributed optimizer weights lie in such a buffer, too, each
parameter from a multiple of 64 numbers on, the end padded so that the data-parallel ranks share it evenly; every rank
then has the optimizer state of its slice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from gipo_mc.parallel.saving.size import bytes_of_a_number
from gipo_mc.plan.grid import Grid
from gipo_mc.plan.parameters import Parameter, Role, chunk_parameters, count, stage_parameters, whole_model

#: Bytes of the numbers that gradients and optimizer state are made of.
FLOAT = 4


@dataclass(frozen=True)
class ModelState:
    """Bytes on one rank, and what they stand for.

    numbers: parameters. buffer: numbers of the gradient buffer, padding included; 0 for a frozen model.
    owned: parameters whose optimizer state is here. largest: numbers of the largest parameter.
    """

    numbers: int
    buffer: int
    owned: int
    largest: int
    weights: int
    gradients: int
    optimizer: int


@lru_cache(maxsize=1024)
def model_state(role: Role, grid: Grid, stage: int, data_rank: int, width: int) -> ModelState:
    """width: bytes of a weight, 2 (bfloat16) or 4."""
    parameters = stage_parameters(role, grid, stage)
    numbers, largest = count(parameters), max(parameter.numel for parameter in parameters)
    if not role.trained:
        return ModelState(numbers, 0, 0, largest, numbers * width, 0, 0)
    if not grid.distributed_optimizer:
        buffer, owned, tensors, stored = numbers, numbers, len(parameters), numbers
    else:
        by_chunk = [
            _buckets(chunk_parameters(role, grid, stage, n), grid.data, grid.bucket if stage == n == 0 else 0)
            for n in range(grid.virtual)
        ]
        buffer = stored = sum(buckets[-1].stop for buckets in by_chunk)
        buckets = [bucket for buckets in by_chunk for bucket in buckets]
        shares = [_overlap(bucket, place, grid.data, data_rank) for bucket in buckets for place in bucket.places]
        owned, tensors = sum(shares), sum(share > 0 for share in shares)
    # Two moments; a float32 copy of weights that are bfloat16; torch's Adam counts steps for each tensor.
    optimizer = owned * FLOAT * (3 if width == 2 else 2) + tensors * FLOAT
    return ModelState(numbers, buffer, owned, largest, stored * width, buffer * FLOAT, optimizer)


def checkpoint_bytes(role: Role, grid: Grid, width: int) -> int:
    """Tensors of a trained model in a checkpoint."""
    each = bytes_of_a_number(width, distributed_optimizer=grid.distributed_optimizer)
    return whole_model(role, grid.tensor) * each


@dataclass(frozen=True)
class _Bucket:
    start: int
    stop: int
    places: list[tuple[int, int]]


def _buckets(parameters: Sequence[Parameter], data: int, most: int) -> list[_Bucket]:
    """The buffer of a chunk under the distributed optimizer: parameters from the last to the first. A shared embedding
    has a bucket of its own; others end once they hold `most` numbers (0: never)."""
    found: list[_Bucket] = []
    start = place = 0
    places: list[tuple[int, int]] = []

    def close() -> None:
        nonlocal start, place, places
        stop = _up(place, math.lcm(data, 128))
        found.append(_Bucket(start, stop, places))
        start, place, places = stop, stop, []

    for parameter in reversed(parameters):
        place = _up(place, 64)
        if parameter.shared and places:
            close()
        places.append((place, place + parameter.numel))
        place += parameter.numel
        if parameter.shared or (most and place - start >= most):
            close()
    if places:
        close()
    return found


def _overlap(bucket: _Bucket, place: tuple[int, int], data: int, rank: int) -> int:
    share = (bucket.stop - bucket.start) // data
    first = bucket.start + rank * share
    return max(0, min(place[1], first + share) - max(place[0], first))


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
