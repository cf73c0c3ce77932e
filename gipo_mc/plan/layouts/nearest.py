"""What makes a plan fit that does not: the nearest change, or more GPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from gipo_mc.config import Config
from gipo_mc.errors import ConfigError
from gipo_mc.plan.layouts.search import RELIEF, known
from gipo_mc.plan.plan import Plan, make_plan, words


@dataclass(frozen=True)
class Change:
    """Other values of some options, on `gpus` GPUs in place of `before`, and the plan with them."""

    options: dict[str, Any]
    gpus: int
    before: int
    plan: Plan

    def describe(self) -> str:
        return " ".join([*words(self.options), *([f"on {self.gpus} GPUs"] if self.gpus != self.before else [])])


def nearest_change(plan: Plan) -> Change | None:
    """What makes a plan fit on the fewest GPUs, with the fewest changes, and of these what takes least time.

    Changes are none, one or two of these: sharing the sequence and the optimizer, smaller parts of a batch, options of
    `RELIEF`, more tensor and pipeline ranks. Tensor ranks stay within a node, unless nothing else fits. None where up
    to 16 times the GPUs do not.
    """
    spread: list[Change] = []
    for factor in (1, 2, 4, 8, 16):
        for number in (0, 1, 2):
            fitting = list(_fitting(plan, plan.grid.world * factor, number))
            if near := [change for change in fitting if not change.plan.grid.crosses_nodes("tensor")]:
                return _best(near)
            spread = spread or fitting
    return _best(spread) if spread else None


def _best(changes: list[Change]) -> Change:
    return min(changes, key=lambda change: (change.plan.memory.tight, change.plan.seconds))


def _fitting(plan: Plan, gpus: int, number: int) -> Iterator[Change]:
    """So many changes on so many GPUs with which the run fits."""
    for chosen in combinations(_changes(plan.run.config), number):
        both = {key: value for change in chosen for key, value in change.items()}
        if len(both) < sum(map(len, chosen)):
            continue  # one option twice
        try:
            other = make_plan(
                plan.run.changed(both), gpus, plan.device, node=plan.grid.node, utilisation=plan.utilisation,
                program=plan.program,
            )  # fmt: skip
        except ConfigError:
            continue
        if other.fits:
            yield Change(both, gpus, plan.grid.world, other)


def more_gpus(look: Callable[[int], list[Plan]], gpus: int) -> Change | None:
    """The first layout of the search on twice, four times, ... sixteen times the GPUs, where none of `gpus` fits; None
    where none of those do. look: `search` of the run on so many GPUs."""
    for factor in (2, 4, 8, 16):
        plans = look(gpus * factor)
        if plans and plans[0].fits:
            return Change(plans[0].options, gpus * factor, gpus, plans[0])
    return None


def _changes(config: Config) -> list[dict[str, Any]]:
    """Options and other values of theirs, the least change first."""
    parallel = config.parallel
    found: list[dict[str, Any]] = []
    if parallel.tensor > 1 and not parallel.sequence:
        found.append({"parallel.sequence": True})
    if parallel.distributed_optimizer == "off":
        found.append({"parallel.distributed_optimizer": "on"})
    for part in (2, 4, 8, 16):
        if parallel.tokens_per_micro_batch >= part * 256:
            found.append({"parallel.tokens_per_micro_batch": parallel.tokens_per_micro_batch // part})
        if parallel.micro_batch_size >= part:
            found.append({"parallel.micro_batch_size": parallel.micro_batch_size // part})
    if parallel.logit_rows == 0 or parallel.logit_rows > 1024:
        found.append({"parallel.logit_rows": 1024})
    for change in known(RELIEF):
        found += [one for key, value in change.items() if (one := {key: value}) not in found]
    for factor in (2, 4, 8):
        found += [{"parallel.tensor": parallel.tensor * factor}, {"parallel.pipeline": parallel.pipeline * factor}]
    return found
