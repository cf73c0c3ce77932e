"""Every layout of so many ranks, ranked: those that fit first, then by time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from gipo_mc.config import options
from gipo_mc.errors import ConfigError
from gipo_mc.plan.hardware import OURS, UTILISATION, Hardware, Program
from gipo_mc.plan.plan import Plan, make_plan, words
from gipo_mc.plan.run import Run

#: What makes room on a GPU, the least loss of time first. The search asks for it where a layout does not fit; options
#: that the configuration does not have are passed over.
RELIEF: tuple[dict[str, Any], ...] = (
    {"memory.recompute": "selective"},
    {"memory.offload": ["frozen"]},
    {"memory.recompute": "selective", "memory.offload": ["frozen"]},
    {"memory.recompute": "full"},
    {"memory.recompute": "full", "memory.offload": ["frozen"]},
    {"memory.recompute": "full", "memory.offload": ["frozen", "optimizer"]},
    {"memory.recompute": "full", "memory.offload": ["frozen", "optimizer", "idle"]},
)
#: Chunks of layers on a rank of a pipeline that the search tries.
CHUNKS = ("parallel.virtual_pipeline", (1, 2, 4))
#: Share of time by which layouts are taken to be as fast as each other.
ALIKE = 0.05


def known(changes: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those whose options a configuration has."""
    return [change for change in changes if change.keys() <= options().keys()]


def search(
    run: Run,
    gpus: int,
    device: Hardware,
    *,
    node: int = 8,
    utilisation: float = UTILISATION,
    program: Program = OURS,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> list[Plan]:
    """Every layout of the ranks that works, `ranked`: tensor (within a node), pipeline, data, with and without sequence
    parallelism, in several chunks; with what of `RELIEF` makes it fit, or comes closest. tell: how many layouts were
    tried, of how many."""
    plans, layouts = [], list(_layouts(gpus, node))
    for number, layout in enumerate(layouts):
        tell(number, len(layouts))
        tried: list[Plan] = []
        for relief in ({}, *known(RELIEF)):
            try:
                plan = make_plan(
                    run.changed(layout | relief), gpus, device, node=node, utilisation=utilisation, program=program
                )
            except ConfigError:
                break
            tried.append(replace(plan, relief=tuple(words(relief))))
            if plan.fits:
                break
        if tried:
            plans.append(tried[-1] if tried[-1].fits else min(tried, key=lambda plan: plan.memory.worst.total))
    return ranked(plans)


def ranked(plans: Iterable[Plan]) -> list[Plan]:
    """Those that fit by time, a tight one behind those that are as fast; then the others by their peak."""
    given = list(plans)
    left, found = sorted((plan for plan in given if plan.fits), key=lambda plan: plan.seconds), []
    while left:
        alike = [plan for plan in left if plan.seconds <= left[0].seconds * (1 + ALIKE)]
        found += sorted(alike, key=lambda plan: plan.memory.tight)
        left = left[len(alike) :]
    return found + sorted((plan for plan in given if not plan.fits), key=lambda plan: plan.memory.worst.total)


def check_alone(run: Run, device: Hardware) -> None:
    """Raises ConfigError for what no layout can change: one rank divides all heads, layers and batches."""
    whole: dict[str, Any] = {"parallel.tensor": 1, "parallel.pipeline": 1, "parallel.sequence": False, CHUNKS[0]: 1}
    frozen = {"parallel.frozen_tensor": 0, "parallel.frozen_pipeline": 0}
    make_plan(run.changed(whole | frozen), 1, device)


def _layouts(gpus: int, node: int) -> Iterator[dict[str, Any]]:
    chunked = known([{CHUNKS[0]: number} for number in CHUNKS[1]])
    for tensor in range(1, min(gpus, node) + 1):
        if gpus > node and node % tensor:
            continue  # a group would begin in one node and end in the next
        for pipeline in range(1, gpus // tensor + 1):
            if gpus % (tensor * pipeline) == 0:
                for sequence in (False, True)[: min(tensor, 2)]:
                    sizes = {"parallel.tensor": tensor, "parallel.pipeline": pipeline, "parallel.sequence": sequence}
                    for chunks in (chunked if pipeline > 1 else chunked[:1]) or [{}]:
                        yield sizes | chunks
