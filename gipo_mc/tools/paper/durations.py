"""About how long the rest of a plan takes, and how that is known."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import get_args

from gipo_mc.tools.paper.plan import Training
from gipo_mc.tools.paper.standing import Journal, Standing
from gipo_mc.tools.paper.steps import Step

#: Kinds of steps whose duration is anybody's guess, and the seconds of the others.
_LONG = (*get_args(Training), "generate", "judge")
_SHORT = {"model": 30.0}


@dataclass(frozen=True)
class Estimate:
    """seconds: None where nobody knows. basis: how it is known, a clause."""

    seconds: float | None
    basis: str


def estimate(step: Step, stands: Standing, journal: Journal) -> Estimate:
    """What is left of a step: from its own attempts, else from those of its kind, else from the plan."""
    if stands.state == "done":
        return Estimate(0.0, "")
    left = max(0, step.units - stands.units) if step.run else step.units
    measured = [row for row in journal.rows if row["units"] > 0 and row["kind"] == step.kind]
    if measured:
        nearest = _nearest(step, [row["name"] for row in measured])
        rate = median(row["seconds"] / row["units"] for row in measured if row["name"] == nearest)
        return Estimate(rate * left, f"measured: {rate:.2g} s for each {step.unit} of {nearest}")
    if step.minutes:
        return Estimate(step.minutes * 60 * left / step.units, "stated in the plan")
    return Estimate(None, "never measured") if step.kind in _LONG else Estimate(_SHORT.get(step.kind, 5.0), "a guess")


def _nearest(step: Step, names: list[str]) -> str:
    """The step itself; one of its task; the last of its kind."""
    if step.name in names:
        return step.name
    own = [name for name in names if name.split("/")[0] == step.name.split("/")[0]]
    return (own or names)[-1]


def in_words(seconds: float) -> str:
    """A duration as one says it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"
