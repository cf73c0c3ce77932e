"""Room on the disk for what a run is going to save, asked at its start: hours may pass before the first checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

from gipo_mc.config import CheckpointConfig
from gipo_mc.errors import StorageError
from gipo_mc.run.saves.places import standing, steps


def saves_left(config: CheckpointConfig, start: int, iterations: int) -> int:
    """Checkpoints that a run writes from `start` finished iterations on."""
    if start >= iterations:
        return 0
    last = config.every == 0 or iterations % config.every > 0
    return last + (iterations // config.every - start // config.every if config.every else 0)


def check_room(folder: Path, size: int, saves: int, keep: int) -> str | None:
    """folder: of the checkpoints. size: bytes of one. saves: how many are to come. keep: how many stay.

    Returns a warning, or None. Raises StorageError where there is no room for the first.
    """
    disk = shutil.disk_usage(standing(folder))
    if not disk.total or not saves:  # some network disks do not say
        return None
    if disk.free < size:
        raise StorageError(
            f"A checkpoint of this run takes {_gib(size)}, and {_gib(disk.free)} are free on the disk of {folder}: the "
            "first save would fail. Free space, or choose another run.dir."
        )
    more = min(saves, keep + 1 - min(len(steps(folder)), keep))  # one is removed when the next one stands
    if disk.free < more * size:
        return (
            f"{more} more checkpoints of {_gib(size)} each may lie in {folder} at once (checkpoint.keep={keep}), and "
            f"{_gib(disk.free)} are free on its disk: the run ends when a checkpoint finds no room. Free space, lower "
            "checkpoint.keep, or choose another run.dir."
        )
    return None


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**29 else f"{size / 2**20:,.1f} MiB"
