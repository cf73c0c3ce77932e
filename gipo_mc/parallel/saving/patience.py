"""The group of ranks that waits long: for what a save, a load or a verification takes on another rank's disk."""

from __future__ import annotations

from datetime import timedelta

import torch.distributed as dist

#: A rank that is gone ends a wait at once; this is for one that is there and does not come.
LIMIT = timedelta(hours=12)

_made: dict[dist.ProcessGroup, dist.ProcessGroup] = {}


def patient() -> dist.ProcessGroup:
    """All ranks, on gloo, with a time-out for disks; that of steps (parallel.timeout_minutes) stays what it is.

    Made at the first call, which every rank makes at the same place.
    """
    world = dist.group.WORLD
    assert world is not None, "the process group is there"
    if world not in _made:
        _made.clear()
        _made[world] = dist.new_group(backend="gloo", timeout=LIMIT)
    return _made[world]
