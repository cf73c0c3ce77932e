"""A run on more and more GPUs, as text for a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gipo_mc.plan.goodput import Scaled
from gipo_mc.plan.show.numbers import number


def scale_text(found: Sequence[Scaled], failure_hours: float, restart: float) -> str:
    """A line for each size, and what was assumed."""
    lines = [
        f"{'GPUs':>5} {'layout':<68}{'batch':>7}{'s':>8}{'tokens/s/GPU':>13}{'scaling':>9}{'MTBF h':>9}"
        f"{'save s':>8}{'every':>7}{'goodput':>9}"
    ]
    for one in found:
        plan, grid, cost = one.plan, one.plan.grid, one.plan.cost or {}
        lines.append(
            f"{grid.world:>5} {grid.describe():<68}{plan.run.batch:>7,}{number(plan.seconds):>8}{plan.rate:>13,.0f}"
            f"{one.efficiency:>9.0%}{one.goodput.mtbf / 3600:>9,.1f}{number(cost['save'].seconds):>8}"
            f"{one.iterations:>7,}{one.goodput.share:>9.1%}"
            f"{''.join(f'  {word}' for word in plan.relief)}"
        )
    lines.append(
        f"every: iterations between checkpoints that lose least (Daly); goodput: progress over time, with a failure in "
        f"{failure_hours:,.0f} GPU-hours\nand {restart:,.0f} s until a checkpoint is read; what "
        "docs/planning.md assumes holds here too"
    )
    return "\n".join(lines)


def scale_json(found: Sequence[Scaled]) -> list[dict[str, Any]]:
    """The same numbers: seconds, tokens a second, shares."""
    return [
        {
            "gpus": one.plan.grid.world,
            "layout": {name: getattr(one.plan.grid, name) for name in ("tensor", "pipeline", "data", "sequence")},
            "options": one.plan.options,
            "batch": one.plan.run.batch,
            "seconds_of_an_iteration": one.plan.seconds,
            "tokens_per_second_per_gpu": one.plan.rate,
            "scaling": one.efficiency,
            "mtbf_seconds": one.goodput.mtbf,
            "save_seconds": (one.plan.cost or {})["save"].seconds,
            "checkpoint_every": one.iterations,
            "goodput": one.goodput.share,
        }
        for one in found
    ]
