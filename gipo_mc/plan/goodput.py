"""Progress on a cluster whose parts fail: how often to save, what failures cost, and a run on more and more GPUs.

Failures come at random at a constant rate, of which every GPU has its share. A failure ends the run; it starts again
from the last checkpoint, and what was done since is done once more. Young (CACM 17-9, 1974) gave the interval between
checkpoints that loses least, Daly (FGCS 22-3, 2006) its next terms and the expected time of such a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gipo_mc.errors import ConfigError
from gipo_mc.plan.hardware import DISK, OURS, Hardware, Program
from gipo_mc.plan.layouts.search import check_alone, search
from gipo_mc.plan.plan import Plan
from gipo_mc.plan.run import Run

#: Hours of one GPU between failures that end a job: Llama 3's pre-training counted 419 unexpected interruptions in 54
#: days on 16,384 H100 (arXiv 2407.21783, section 3.3.4).
FAILURE_HOURS = 54 * 24 * 16384 / 419
#: Seconds from a failure until the ranks read the checkpoint: an assumption. The other ranks notice a lost process
#: within seconds and a silent one after `parallel.timeout_minutes`; then nodes are replaced and the ranks start.
RESTART = 300.0


@dataclass(frozen=True)
class Goodput:
    """mtbf: seconds between failures of the whole job. every: seconds of progress between checkpoints.
    share: progress over time, checkpoints, repeated work and restarts counted; 0 to 1."""

    mtbf: float
    every: float
    share: float


def young(save: float, mtbf: float) -> float:
    """Seconds of progress between checkpoints by the first-order rule, sqrt(2 save mtbf)."""
    return math.sqrt(2 * save * mtbf)


def daly(save: float, mtbf: float) -> float:
    """The same with two more terms; failures that come faster than two saves leave the interval at their distance."""
    if save >= 2 * mtbf:
        return mtbf
    ratio = math.sqrt(save / (2 * mtbf))
    return young(save, mtbf) * (1 + ratio / 3 + ratio * ratio / 9) - save


def goodput(step: float, save: float, restart: float, mtbf: float) -> Goodput:
    """step: seconds of an iteration; checkpoints come after whole ones. save: seconds in which a checkpoint stops
    training. restart: seconds from a failure to the first repeated iteration."""
    steps = max(1, round(daly(save, mtbf) / step)) if save else 1
    every = steps * step
    exponent = (every + save) / mtbf
    if exponent + restart / mtbf > 500:  # exp() would overflow, and no run gets anywhere
        return Goodput(mtbf, every, 0.0)
    # Daly's expected time of one interval, with a restart that may fail as well.
    expected = mtbf * math.exp(restart / mtbf) * math.expm1(exponent)
    return Goodput(mtbf, every, every / expected)


@dataclass(frozen=True)
class Scaled:
    """A run on more GPUs. iterations: between checkpoints. efficiency: the rate of the plan, which knows no failures,
    over that of the first size."""

    plan: Plan
    efficiency: float
    goodput: Goodput
    iterations: int


def sizes(first: int, last: int) -> list[int]:
    """first, twice as many, and so on up to `last`."""
    return [first << power for power in range(max(0, (last // first).bit_length())) if first << power <= last]


def scale(
    run: Run,
    gpus: Sequence[int],
    device: Hardware,
    *,
    grow: bool,
    node: int,
    utilisation: float,
    program: Program = OURS,
    failure_hours: float = FAILURE_HOURS,
    restart: float = RESTART,
    tell: Callable[[int, int], None] = lambda done, of: None,
) -> list[Scaled]:
    """The fastest layout that fits on each number of GPUs; sizes on which none does are left out.

    grow: the batch and its mini-batches grow with the GPUs (weak scaling); else they stay (strong scaling).
    program: which is planned. failure_hours: of one GPU. tell: how many sizes are done, of how many.
    Raises ConfigError where no size has a layout that fits.
    """
    found: list[Scaled] = []
    for size, number in enumerate(gpus):
        tell(size, len(gpus))
        own = _grown(run, number // gpus[0]) if grow else run
        plans = search(own, number, device, node=node, utilisation=utilisation, program=program)
        if not plans or not plans[0].fits:
            continue
        found.append(_scaled(plans[0], found[0] if found else None, failure_hours, restart))
    if not found:
        check_alone(run, device)
        raise ConfigError(
            f"No layout of {gpus[0]} to {gpus[-1]} GPUs fits: ask with --gpus and --search what is missing, or raise "
            "--scale-to."
        )
    return found


def _scaled(plan: Plan, first: Scaled | None, failure_hours: float, restart: float) -> Scaled:
    assert plan.cost is not None, "a plan of a GPU has times"
    save = plan.cost["save"].seconds
    # A checkpoint is read by as many ranks as wrote it, at the same rate.
    read = plan.checkpoint / plan.grid.world / DISK
    found = goodput(plan.seconds, save, restart + read, failure_hours * 3600 / plan.grid.world)
    efficiency = plan.rate / first.plan.rate if first else 1.0
    return Scaled(plan, efficiency, found, max(1, round(found.every / plan.seconds)))


def _grown(run: Run, factor: int) -> Run:
    config = run.config
    return run.changed({
        "rollout.batch_size": config.rollout.batch_size * factor,
        "algorithm.mini_batch_size": config.algorithm.mini_batch_size * factor,
        "train.batch_size": config.train.batch_size * factor,
    })  # fmt: skip
