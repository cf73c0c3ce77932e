"""Which colour a run, a domain, a group and a phase have, the same everywhere."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gipo_mc.report.drawing import plots
from gipo_mc.report.runs import RunData

PHASES = (
    "rollout", "behaviour_logprob", "reference_logprob", "values", "rewards", "advantages", "update_critic",
    "update_policy",
)  # fmt: skip


def phase_colour(phase: str) -> str:
    """Colour of a phase, the same in every chart and table."""
    extra = {"other": "#b8c0c8", "update": plots.PHASE_COLOURS[0], "evaluation": plots.PHASE_COLOURS[-1]}
    return plots.PHASE_COLOURS[PHASES.index(phase)] if phase in PHASES else extra.get(phase, "#8795a1")


def domain_colours(runs: Sequence[RunData]) -> dict[str, str]:
    """Colour of every domain that any metric of the runs names."""
    names = sorted(
        {match[1] for run in runs for name in run.series if (match := re.search(r"(?:^|/)domain/(.+)$", name))}
    )
    return {name: plots.DOMAIN_COLOURS[i % len(plots.DOMAIN_COLOURS)] for i, name in enumerate(names)}


def group_colour(group: str) -> str:
    """Colour of inferred group `group`, a number as text."""
    return plots.GROUP_COLOURS[(int(group) if group.isdigit() else 0) % len(plots.GROUP_COLOURS)]


def run_colour(index: int) -> str:
    """Colour of the run at `index` in the report."""
    return plots.RUN_COLOURS[index % len(plots.RUN_COLOURS)]
