"""Names in the folder of a run's checkpoints, and where the folder of a run may be."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gipo_mc.errors import ConfigError

SHARDS = "shards"
#: Begins the name of what is being written or removed, and is no checkpoint.
TEMPORARY = ".tmp-"
_PREFIX = "step_"
_STEP = re.compile(_PREFIX + "([0-9]{8,18})")
#: What `gipo_mc.run.manifest` calls FILE and STATE. Not imported from there: readers of a run need no torch.
_OF_A_CHECKPOINT = ("MANIFEST.json", "state.json")


def place_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` is, or is going to be."""
    return folder / f"{_PREFIX}{step:08d}"


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in `folder`, ascending, verified or not."""
    found = [_STEP.fullmatch(path.name) for path in folder.glob(f"{_PREFIX}*")] if folder.is_dir() else []
    return sorted(int(match[1]) for match in found if match)


def standing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there: on the disk where it is going to be. Names that no file can
    have are not there; where nothing is, not even the folder that a command runs in, it is "."."""
    return next((place for place in (path, *path.parents) if os.path.exists(place)), Path("."))


def checkpoint_around(path: Path) -> Path | None:
    """The checkpoint, or the folder of a run's checkpoints, that `path` is or lies in; None: it lies in none. What is
    put there makes a checkpoint one that does not verify."""
    path = Path(os.path.realpath(path))
    for place in (path, *path.parents):
        if all(os.path.isfile(place / name) for name in _OF_A_CHECKPOINT):
            return place
        if place.name == "checkpoints" and any(place.glob(f"step_*/{_OF_A_CHECKPOINT[0]}")):
            return place
    return None


def of_run(dir: Path | str, name: str) -> Path:
    """The folder of a run of this name, made or not. Raises ConfigError where a run cannot be there: the name leaves
    `dir`, or the place holds a model or lies in checkpoints, which a run's files would spoil."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ConfigError(f"run.name={name!r} leaves run.dir={str(dir)!r}: give a plain name.")
    path = Path(dir) / name
    if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
        raise ConfigError(
            f"{path} holds a model (config.json and safetensors): a run among its files would make it two things under "
            "one name. Give another run.name or run.dir."
        )
    if around := checkpoint_around(path):
        raise ConfigError(
            f"{path} is or lies in the checkpoints {around} of a run, which would no longer be what their manifests "
            "say. Give another run.name or run.dir."
        )
    return path
