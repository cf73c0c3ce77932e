"""Sums in rank order, rows that become everyone's, and errors that reach every rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from gipo_mc.config import ParallelConfig
from gipo_mc.errors import ConfigError, DataError
from gipo_mc.parallel import runtime
from gipo_mc.parallel.collectives import (
    broadcast_from_last_stage,
    gather_in_rank_order,
    on_main,
    replicate_rows,
    sum_in_rank_order,
)
from gipo_mc.parallel.layout import split_rows
from tests.ranks import run_ranks


def _sums(rank: int) -> Any:
    values = torch.tensor([[1e8, 1.0, -1e8, 1.0][rank], 0.1 * (rank + 1), float(rank), [1e8, -1e8, 1.0, 1.0][rank]])
    matrix = (torch.arange(6.0).reshape(2, 3) + 10 * rank).t()  # not contiguous
    integers = torch.tensor([rank + 1])
    before = values.clone()
    result = sum_in_rank_order(values), gather_in_rank_order(matrix), sum_in_rank_order(integers)
    assert torch.equal(values, before), "the argument was changed"
    return result


def test_sums_are_added_in_rank_order_and_equal_everywhere() -> None:
    results = run_ranks(_sums, 4)
    total = results[0][0]
    # ((1e8 + 1) - 1e8) + 1 in fp32 is 1; pairwise it would be 0. ((1e8 - 1e8) + 1) + 1 is 2; from behind it would be 0.
    assert total[0] == 1.0 and total[3] == 2.0 and total[2] == 6.0
    expected = torch.tensor(0.1)
    for rank in (1, 2, 3):
        expected = expected + 0.1 * torch.tensor(rank + 1.0)
    assert total[1] == pytest.approx(float(expected))
    for other in results[1:]:
        assert torch.equal(other[0], total)
    for _, gathered, integers in results:
        assert gathered.shape == (4, 3, 2) and gathered[3, 2, 1] == 35.0
        assert integers.dtype == torch.int64 and integers.item() == 10


def _rows(rank: int, sizes: dict[str, int], count: int, step: int) -> Any:
    """step: the replicas' rows are contiguous blocks of 0, step, 2 step, ... modulo the count."""
    layout = runtime.initialize(ParallelConfig(timeout_minutes=1, **sizes), "cpu")
    columns = None
    blocks = [[row * step % count for row in block] for block in split_rows(count, layout.data)]
    if layout.is_last_stage:
        rows = torch.tensor([float(row) for row in blocks[layout.data_rank]])
        columns = {"scalar": rows, "wide": rows[:, None] * 10 + torch.arange(3.0), "one": rows[:, None] - 0.5}
    return replicate_rows(columns, {"wide": 3, "scalar": 0, "one": 1}, blocks, layout)


@pytest.mark.parametrize("sizes", [{"pipeline": 2}, {"tensor": 2}, {"tensor": 2, "pipeline": 2}, {}])
def test_rows_of_all_replicas_stand_in_global_order_on_every_rank(sizes: dict[str, int]) -> None:
    """Four ranks: DP2 x PP2, DP2 x TP2, TP2 x PP2 and DP4, with 7 rows, in any order, that none divides."""
    for found in run_ranks(_rows, 4, sizes, 7, 3):
        rows = torch.arange(7.0)
        assert list(found) == ["wide", "scalar", "one"]
        assert torch.equal(found["scalar"], rows)
        assert torch.equal(found["wide"], rows[:, None] * 10 + torch.arange(3.0))
        assert torch.equal(found["one"], rows[:, None] - 0.5) and found["one"].shape == (7, 1)


def _from_last(rank: int) -> Any:
    layout = runtime.initialize(ParallelConfig(pipeline=2, timeout_minutes=1), "cpu")
    own = torch.tensor([[1, 2], [3, 4]]) if layout.is_last_stage else None
    return broadcast_from_last_stage(own, (2, 2), torch.int64, layout)


def test_every_stage_gets_what_the_last_one_holds() -> None:
    for found in run_ranks(_from_last, 2):
        assert found.dtype == torch.int64 and found.tolist() == [[1, 2], [3, 4]]


def _main(rank: int) -> Any:
    def refuse() -> None:
        raise DataError("train.jsonl:3: no response")

    def break_() -> None:
        raise KeyError("a bug")

    def never() -> None:
        raise AssertionError("called on another rank than 0")

    outcome: list[Any] = [on_main((lambda: {"from": rank}) if rank == 0 else never)]
    for work in (refuse, break_):
        try:
            on_main(work if rank == 0 else never)
        except (ConfigError, DataError, RuntimeError) as error:
            outcome.append((type(error).__name__, str(error), getattr(error, "exit_code", None)))
    # Ranks are still in step after the errors.
    alive = torch.ones(1)
    dist.all_reduce(alive)
    return [*outcome, alive.item()]


@pytest.mark.parametrize("ranks", [1, 3])
def test_an_error_on_the_main_rank_is_raised_on_all(ranks: int) -> None:
    for outcome in run_ranks(_main, ranks):
        assert outcome == [
            {"from": 0},
            ("DataError", "train.jsonl:3: no response", 3),
            ("RuntimeError", "rank 0 failed: KeyError: 'a bug'", None),
            float(ranks),
        ]
