"""Stages that wait for ever, lost tensors and wrong groups are found on paper."""

from __future__ import annotations

from gipo_mc.parallel.megatron.pretend import Exchange, Group, Message
from gipo_mc.plan.grid import Grid
from gipo_mc.tools.dry_run.exchanges import problems
from gipo_mc.tools.dry_run.groups import NAMES, _expected, named, short

SHAPE = (8, 2, 4)


def _sent(kind: str, shape: tuple[int, ...] = SHAPE) -> Message:
    return Message(kind, True, shape)  # type: ignore[arg-type]


def _wanted(kind: str) -> Message:
    return Message(kind, False, SHAPE)  # type: ignore[arg-type]


def test_a_course_that_ends():
    """Two stages, two micro-batches, as 1F1B runs them."""
    first: list[Exchange] = [
        (_sent("activation"),), (_sent("activation"), _wanted("gradient")), (_wanted("gradient"),),
    ]  # fmt: skip
    last: list[Exchange] = [
        (_wanted("activation"),), (_sent("gradient"), _wanted("activation")), (_sent("gradient"),),
    ]  # fmt: skip
    assert problems([first, last]) == []


def test_stages_that_wait_for_each_other():
    first: list[Exchange] = [(_wanted("gradient"),), (_sent("activation"),)]
    last: list[Exchange] = [(_wanted("activation"),), (_sent("gradient"),)]
    (text,) = problems([first, last])
    assert "for ever: stage 0 at exchange 1 of 2; stage 1 at exchange 1 of 2" in text


def test_a_ring_of_chunks_that_wait_for_each_other():
    """With several chunks of layers on a stage the last one sends on to the first."""
    ring: list[list[Exchange]] = [[(_sent("activation"), _wanted("activation"))] for _ in range(3)]
    assert problems(ring) == []
    late: list[list[Exchange]] = [[(_wanted("activation"),), (_sent("activation"),)] for _ in range(3)]
    assert "wait for each other" in problems(late)[0]


def test_counts_and_shapes_match():
    lost: list[list[Exchange]] = [[(_sent("activation"),)], [(_wanted("activation"),), (_wanted("activation"),)]]
    assert problems(lost) == ["Stage 0 sends 1 activations, and stage 1 waits for 2."]
    odd: list[list[Exchange]] = [[(_sent("activation", (8, 1, 4)),)], [(_wanted("activation"),)]]
    assert problems(odd) == ["Stage 0 sends activations of shape (8, 1, 4), and stage 1 expects (8, 2, 4)."]


def test_groups_are_those_of_the_layout():
    grid = Grid(2, 2, 2, False, True, node=4)
    groups = [Group(megatron, ranks) for megatron, name in NAMES.items() for ranks in _expected(name, grid)]
    kinds, found = named(groups, grid)
    assert not found and {kind.name: kind.crosses for kind in kinds} == {
        "tensor": False, "data": False, "pipeline": True, "replica": True, "embedding": True,
    }  # fmt: skip
    assert kinds[0].describe() == "tensor     4 groups of 2: 0-1, 2-3, ..."
    swapped = [Group(one.name, (0, 2)) if one.ranks == (0, 1) else one for one in groups]
    _, found = named(swapped, grid)
    assert len(found) == 1 and "tensor groups are not those of the layout" in found[0]


def test_short_names_of_ranks():
    shown = {
        "3": [3], "0-3": range(4), "0 8": (0, 8), "0-3 8-11": (0, 1, 2, 3, 8, 9, 10, 11), "0-56 by 8": range(0, 64, 8),
        "0 2 ... 9-11": (0, 2, 4, 5, 7, 9, 10, 11), "none": (),
    }  # fmt: skip
    assert {text: short(list(ranks)) for text, ranks in shown.items()} == {text: text for text in shown}
