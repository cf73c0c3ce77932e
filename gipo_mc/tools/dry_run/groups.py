"""The process groups of a job: named, and compared with what the layout says of every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from gipo_mc.parallel.megatron.pretend import Group
from gipo_mc.plan.grid import Grid

#: Megatron's names of the groups that the trainers call, and ours.
NAMES = {
    "TENSOR_MODEL_PARALLEL_GROUP": "tensor",
    "DATA_PARALLEL_GROUP": "data",
    "PIPELINE_MODEL_PARALLEL_GROUP": "pipeline",
    "MODEL_PARALLEL_GROUP": "replica",
    "EMBEDDING_GROUP": "embedding",
}


@dataclass(frozen=True)
class Kind:
    """All groups of one kind. crosses: do they reach over one machine?"""

    name: str
    members: tuple[tuple[int, ...], ...]
    crosses: bool

    def describe(self) -> str:
        """ "tensor      8 groups of 8: 0-7, 8-15, ..."."""
        shown = ", ".join(short(ranks) for ranks in self.members[:2])
        more = ", ..." if len(self.members) > 2 else ""
        number = f"{len(self.members)} group{'s' if len(self.members) > 1 else ''} of {len(self.members[0])}"
        return f"{self.name:<11}{number}: {shown}{more}{' (network)' if self.crosses else ''}"


def named(groups: Sequence[Group], grid: Grid) -> tuple[list[Kind], list[str]]:
    """(the groups by kind, where Megatron's are not those of the layout)."""
    kinds, problems = [], []
    for megatron, name in NAMES.items():
        own = tuple(sorted({group.ranks for group in groups if group.name == megatron}))
        expected = tuple(sorted(_expected(name, grid)))
        if own != expected:
            where = next(pair for pair in zip((*own, ()), (*expected, ()), strict=False) if pair[0] != pair[1])
            problems.append(
                f"Megatron's {name} groups are not those of the layout {grid.describe()}: {short(where[0])} in the "
                f"place of {short(where[1])}. Please report this with the configuration."
            )
        if own:
            node = grid.node
            crosses = any(len({rank // node for rank in ranks}) > 1 for ranks in own)
            kinds.append(Kind(name, own, crosses))
    return kinds, problems


def _expected(name: str, grid: Grid) -> list[tuple[int, ...]]:
    tensor, data, stages = range(grid.tensor), range(grid.data), range(grid.pipeline)

    def rank(stage: int, replica: int, part: int) -> int:
        return (stage * grid.data + replica) * grid.tensor + part

    if name == "tensor":
        return [tuple(rank(s, d, t) for t in tensor) for s in stages for d in data]
    if name == "data":
        return [tuple(rank(s, d, t) for d in data) for s in stages for t in tensor]
    if name == "replica":
        return [tuple(rank(s, d, t) for s in stages for t in tensor) for d in data]
    used = list(stages) if name == "pipeline" else sorted({0, grid.pipeline - 1})
    return [tuple(rank(s, d, t) for s in used) for d in data for t in tensor]


def short(ranks: Sequence[int]) -> str:
    """ "0-7", "0 8", "0-3 8-11" or "0-56 by 8"."""
    if not ranks:
        return "none"
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    steps = {after - before for before, after in pairwise(ranks)}
    if len(runs) > 4 and len(steps) == 1:
        return f"{ranks[0]}-{ranks[-1]} by {steps.pop()}"
    told = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return " ".join(told if len(told) <= 4 else [*told[:2], "...", told[-1]])
