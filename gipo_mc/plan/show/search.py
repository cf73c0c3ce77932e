"""Layouts side by side, as text for a terminal."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from gipo_mc.plan.layouts.nearest import Change
from gipo_mc.plan.layouts.search import ALIKE
from gipo_mc.plan.memory import UNCERTAIN
from gipo_mc.plan.plan import Plan, words
from gipo_mc.plan.show.numbers import number, size


def search_text(plans: Sequence[Plan], most: int, change: Change | None = None) -> str:
    """The best layouts, a line each, and the options of the first as they are written on a command line. change: what
    fits on more GPUs, where none of these does."""
    lines = [f"{'layout':<68}{'peak GiB':>9}{'fits':>7}{'s':>9}{'bubble':>8}"]
    lines += map(_line, plans[:most])
    if len(plans) > most:
        lines.append(f"and {len(plans) - most} more")
    if any(plan.memory.tight for plan in plans[:most]):
        lines.append(
            f"tight: fits by less than the {UNCERTAIN:.1%} that planned peaks were off measured ones; stands behind "
            f"those that are as fast, within {ALIKE:.0%}"
        )
    lines += plans[0].notes
    if plans[0].fits:
        return "\n".join([*lines, "the first of them, as options:", pasted(plans[0])])
    lines += [f"The first of them: {problem}" for problem in plans[0].problems]
    none = f"No layout of {plans[0].grid.world} GPU{'s' * (plans[0].grid.world > 1)} fits"
    if change is None:
        return "\n".join([*lines, f"{none}, and none of up to 16 times as many."])
    lines.append(
        f"{none}. The fewest that do, of twice as many, four times, ..., are {change.gpus}, "
        f"with {size(change.plan.memory.worst.total)} at most{host_of(change.plan)}"
        f"{f', {number(change.plan.seconds)} s an iteration' if change.plan.cost else ''}:"
    )
    return "\n".join([*lines, f"--gpus {change.gpus} {pasted(change.plan)}"])


def pasted(plan: Plan) -> str:
    """The options of a layout as a shell takes them."""
    return " ".join(shlex.quote(word) for word in words(plan.options))


def host_of(plan: Plan) -> str:
    """ ", 789.0 GiB of host memory a node", where parts of models lie there; else ""."""
    return f", {size(plan.host_of_a_node)} of host memory a node" if plan.offloaded else ""


def _line(plan: Plan) -> str:
    fits = "tight" if plan.memory.tight else "yes" if plan.fits else "no"
    line = f"{plan.grid.describe():<68}{plan.memory.worst.total / 2**30:>9.1f}{fits:>7}{number(plan.seconds):>9}"
    relief = " ".join(plan.relief) + host_of(plan)
    return "  ".join([f"{line}{plan.bubble:>8.0%}", *filter(None, [relief])])
