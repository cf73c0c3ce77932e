"""What runs of a study cost, as those that have ended show, for the budget of the others: processor, memory, disk."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.studies.runs import Run

#: Taken for a run on the built-in task where none has been measured: MiB of memory, shared pages included, and of disk.
MEMORY, DISK = 700.0, 1.0


def spent(folder: Path, since: float) -> dict[str, float]:
    """By this process on the run in `folder`: "processor", its seconds after the first `since`; "memory", the peak in
    MiB, pages that it shares with its parent included; "disk", MiB that the run leaves behind."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    left = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"processor": time.process_time() - since, "memory": usage.ru_maxrss / 1024, "disk": left / 2**20}


@dataclass(frozen=True)
class Expected:
    """Of one run: processor seconds, MiB of memory and of disk, and whether a run like it was measured."""

    processor: float
    memory: float
    disk: float
    measured: bool


def expected(run: Run, outcomes: Sequence[Mapping[str, Any]], guess: Callable[[Run], float]) -> Expected:
    """From the measured runs of the same stage and method, with any value and seed, or else of the same stage.

    guess: seconds of a run where there are none."""
    own = [o for o in outcomes if "cost" in o and not o["failure"] and o["run"]["stage"] == run.stage]
    own = [o for o in own if o["run"]["method"] == run.method] or own
    if not own:
        return Expected(guess(run), MEMORY, DISK, measured=False)
    means = {name: statistics.mean(o["cost"][name] for o in own) for name in ("processor", "memory", "disk")}
    return Expected(**means, measured=True)


def sentence(
    left: Sequence[Run], outcomes: Sequence[Mapping[str, Any]], guess: Callable[[Run], float], workers: int
) -> str:
    """How much the runs that are left will cost, with `workers` at a time."""
    runs = [expected(run, outcomes, guess) for run in left]
    minutes, disk = sum(run.processor for run in runs) / 60, sum(run.disk for run in runs)
    memory = max((run.memory for run in runs), default=0.0) * min(workers, len(runs))
    known = sum(run.measured for run in runs)
    return (
        f"{len(left)} left: about {minutes / workers:.0f} minutes with {workers} worker(s) of one thread, "
        f"{minutes:.0f} core-minutes ({known} of them as measured runs took, {len(runs) - known} by guess), at most "
        f"{memory:.0f} MiB of memory and {disk:.0f} MiB of disk; what they start from is not counted."
    )
