"""Names in the folder of a run's checkpoints."""

from __future__ import annotations

import re
from pathlib import Path

SHARDS = "shards"
#: Begins the name of what is being written or removed, and is no checkpoint.
TEMPORARY = ".tmp-"
_PREFIX = "step_"
_STEP = re.compile(_PREFIX + "([0-9]{8,18})")


def place_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` is, or is going to be."""
    return folder / f"{_PREFIX}{step:08d}"


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in `folder`, ascending, verified or not."""
    found = [_STEP.fullmatch(path.name) for path in folder.glob(f"{_PREFIX}*")] if folder.is_dir() else []
    return sorted(int(match[1]) for match in found if match)
