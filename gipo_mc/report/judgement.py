"""Did a metric rise, or does it only waver? What the report's words rest on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gipo_mc.report.runs import RunData, window_of

#: Standard errors beyond which a change is one.
_CLEAR = 2.0
#: Fewer values than these are not judged.
ENOUGH = 3
#: Of fewer values than these a curve that turns cannot be told from one that wavers.
FEW = 10


@dataclass(frozen=True)
class Change:
    """A metric from its first tenth to its last. error: standard error of a mean over a tenth, from how the metric
    wavers between neighbours. way: 1 it rose, -1 it fell, 0 neither is clear."""

    first: float
    last: float
    error: float
    way: int


def change(run: RunData, name: str) -> Change | None:
    """How a metric went; None where it was logged fewer than `ENOUGH` times."""
    values = run.values(name)
    if len(values) < ENOUGH:
        return None
    first, last, error = float(run.first(name) or 0.0), float(run.last(name) or 0.0), wavering(values)
    clear = abs(last - first) > _CLEAR * math.sqrt(2) * error
    return Change(first, last, error, int(np.sign(last - first)) if clear else 0)


def wavering(values: np.ndarray) -> float:
    """Standard error of the mean over a tenth of the values [n], from the differences of neighbours: a slow trend is
    not part of it."""
    if len(values) < ENOUGH:
        return 0.0
    return float(np.diff(values).std()) / math.sqrt(2 * window_of(len(values)))


def apart(one: RunData, other: RunData, name: str) -> bool:
    """Do the final values of two runs differ by more than they waver?"""
    ends, values = (one.last(name), other.last(name)), (one.values(name), other.values(name))
    if ends[0] is None or ends[1] is None or min(map(len, values)) < ENOUGH:
        return False
    return abs(ends[0] - ends[1]) > _CLEAR * math.hypot(*map(wavering, values))


def turn(run: RunData, name: str) -> tuple[int, float] | None:
    """(step, value) of the value that lies furthest outside of both ends of a metric, where that is further than they
    lie apart: what a sentence on the ends alone would hide."""
    values = run.values(name)
    if len(values) < ENOUGH:
        return None
    low, high = sorted((float(run.first(name) or 0.0), float(run.last(name) or 0.0)))
    outside = np.maximum(values - high, low - values)
    at = int(outside.argmax())
    steps = run.steps[np.isfinite(run.series[name])]
    return (int(steps[at]), float(values[at])) if outside[at] > high - low else None


def best_step(run: RunData, name: str) -> tuple[int, float] | None:
    """(step, value) of the highest value of a metric, where its end is clearly below it; else None."""
    values = run.values(name)
    if len(values) < 2 * ENOUGH:
        return None
    steps = run.steps[np.isfinite(run.series[name])]
    at = int(values.argmax())
    single = wavering(values) * math.sqrt(window_of(len(values)))
    end = float(run.last(name) or 0.0)
    # The highest of many values is high by chance alone: three standard deviations of one.
    return (int(steps[at]), float(values[at])) if values[at] - end > 3 * single and at < len(values) - 1 else None
