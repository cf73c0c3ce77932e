"""The plan of micro-batches: every unit once, few tokens more than there are, and as many for each replica."""

from __future__ import annotations

import random

import pytest

from gipo_mc.models.packing import Packer


def test_by_hand() -> None:
    lengths = [3, 9, 4, 4, 8]
    packer = Packer(lengths, units=2)
    assert packer.plan(1) == [[[4, 2], [1], [3, 0]]], "16, 9 and 8 tokens: not 18, 8 and 3"
    assert packer.padding(packer.plan(1), real=28) == pytest.approx(5 / 33)
    assert Packer(lengths, units=9, tokens=12).plan(1) == [[[2, 3, 0], [1], [4]]], "12, 9 and 8"
    assert Packer(lengths, units=9).plan(2) == [[[1, 4]], [[2, 3, 0]]], "four passes of one or two would cost more"


def test_padding_and_imbalance_are_worth_a_pass_only_where_they_cost_more() -> None:
    """A pass costs as much as 128 tokens."""
    assert Packer([300, 172], units=9).plan(1) == [[[0, 1]]], "600 + 128, as much as 300 + 172 + 2 x 128"
    assert Packer([300, 171], units=9).plan(1) == [[[0], [1]]]
    lengths = [300, 900, 400, 400, 800]
    assert Packer(lengths, units=9).plan(2) == [[[1], [0]], [[2, 3], [4]]], "1,600 tokens at most, not 1,800"
    assert Packer(lengths, units=9).plan(1) == [[[1, 4], [2, 3, 0]]], "3,000 tokens: 200 fewer are not worth a pass"


def test_a_row_longer_than_the_budget_is_a_micro_batch_of_its_own() -> None:
    assert Packer([2, 50, 2, 60], units=9, tokens=8).plan(1) == [[[3], [1], [0, 2]]]
    assert Packer([2, 50], units=9, tokens=8, unit=2).plan(1) == [[[1], [0]]], "pairs of 100 and 4 tokens"


def test_micro_batches_are_about_as_large() -> None:
    """Ten rows where eight fit: five and five, not eight and two."""
    for bound in ({"units": 8}, {"units": 99, "tokens": 80}):
        assert [len(part) for part in Packer([10] * 10, **bound).plan(1)[0]] == [5, 5]


def test_a_replica_has_no_unit_only_where_there_are_too_few() -> None:
    assert Packer([1, 1000, 1], units=9).plan(3) == [[[1]], [[0]], [[2]]]
    assert all(Packer([7] * 5, units=9).plan(4)), "two rows each would leave the last one none"
    assert Packer([5, 6], units=9).plan(3) == [[[1]], [[0]], []]


@pytest.mark.parametrize("unit", [1, 2])
@pytest.mark.parametrize("replicas", [1, 2, 3, 8])
def test_every_unit_runs_once_and_within_the_bounds(replicas: int, unit: int) -> None:
    draw = random.Random(replicas)
    for _ in range(50):
        lengths = [draw.choice([1, 2, 30, 100, 1000]) + draw.randrange(50) for _ in range(draw.randrange(8, 60))]
        units, tokens = draw.choice([1, 3, 100]), draw.choice([0, 1, 300, 4000])
        packer = Packer(lengths, units, tokens, unit)
        plan = packer.plan(replicas)
        parts = [part for replica in plan for part in replica]
        assert all(plan) and sorted(number for part in parts for number in part) == list(range(len(lengths)))
        for part in parts:
            longest = max(lengths[number] for number in part)
            assert len(part) <= units and (len(part) == 1 or not tokens or len(part) * unit * longest <= tokens)
        assert 0 <= packer.padding(plan, unit * sum(lengths)) < 1


@pytest.mark.parametrize(("replicas", "slack"), [(1, 1.07), (2, 1.07), (4, 1.08), (8, 1.09)])
def test_little_padding_and_even_loads(replicas: int, slack: float) -> None:
    """Four rows at a time as they come are half as many tokens again as there are."""
    draw = random.Random(0)
    lengths = [draw.randint(16, 512) for _ in range(128)]
    assert sum(4 * max(lengths[start : start + 4]) for start in range(0, 128, 4)) > 1.5 * sum(lengths)
    for units, tokens in ((4, 0), (64, 2048)):
        plan = Packer(lengths, units, tokens).plan(replicas)
        loads = [sum(len(part) * lengths[part[0]] for part in replica) for replica in plan]
        assert max(loads) <= slack * sum(lengths) / replicas, (units, tokens)
