"""What makes a plan fit that does not: the nearest change, or more GPUs."""

from __future__ import annotations

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
    """What makes a plan fit on the fewest GPUs, with the fewest changes: none, one or two of these, in this order:
    sharing the sequence and the optimizer, smaller parts of a batch, options of `RELIEF`, more tensor and pipeline
    ranks. None where up to 16 times the GPUs do not."""
    gpus, changes = plan.grid.world, _changes(plan.run.config)
    for factor in (1, 2, 4, 8, 16):
        for number in (0, 1, 2):
            for chosen in combinations(changes, number):
                both = {key: value for change in chosen for key, value in change.items()}
                if len(both) < sum(map(len, chosen)):
                    continue  # one option twice
                try:
                    other = make_plan(plan.run.changed(both), gpus * factor, plan.device, node=plan.grid.node)
                except ConfigError:
                    continue
                if other.fits:
                    return Change(both, gpus * factor, gpus, other)
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
