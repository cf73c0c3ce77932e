"""MANIFEST.json: size and SHA-256 of every file of a checkpoint, and the check of a checkpoint against it.

Ranks share the reading. What was verified is remembered for as long as the process runs and the files stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from gipo_mc.config import name_problem
from gipo_mc.errors import CheckpointError
from gipo_mc.parallel.collectives import on_main
from gipo_mc.parallel.disk import sync, write_synced
from gipo_mc.parallel.sharded_files import all_or_fail, on_main_or_fail
from gipo_mc.run.hashes import sha256_of, shares, signature
from gipo_mc.run.jsonl import read_file

FORMAT = 1
FILE = "MANIFEST.json"
STATE = "state.json"

Entry = dict[str, Any]
_verified: dict[Path, list[Any]] = {}


def write(path: Path, step: int, files: dict[str, Entry]) -> None:
    """Write the manifest of `path`, whose files are `files`: the last file of a checkpoint. Raises OSError."""
    stated = {"format": FORMAT, "step": step, "files": files}
    write_synced(path / FILE, json.dumps(stated, indent=1).encode())


def describe(path: Path) -> dict[str, Entry]:
    """Size and SHA-256 of every file under `path`, all of which are on the disk then. Every rank calls it and reads a
    share; all get the whole. Raises WriteFailed."""
    sizes: dict[str, int] = on_main_or_fail(lambda: {name: (path / name).stat().st_size for name in files_of(path)})
    own: dict[str, Entry] = {}

    def work() -> None:
        for name in shares(sizes, dist.get_world_size())[dist.get_rank()]:
            sync(path / name)
            own[name] = {"size": sizes[name], "sha256": sha256_of(path / name)}

    all_or_fail(work)
    gathered: list[dict[str, Entry]] = [{}] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    return dict(sorted(item for part in gathered for item in part.items()))


def verify(path: Path, *, together: bool = False) -> None:
    """Check every file of a checkpoint against its manifest. Raises CheckpointError naming the first that differs.

    together: every rank calls it and reads a share of the files; all of them raise.
    """
    if not together:
        _finish(path, _wrong(path, stated := _stated(path), list(stated)))
        return
    stated = on_main(lambda: _stated(path))
    parts = shares({name: entry["size"] for name, entry in stated.items()}, dist.get_world_size())
    found: list[list[str]] = [[]] * dist.get_world_size()
    dist.all_gather_object(found, _wrong(path, stated, parts[dist.get_rank()]))
    on_main(lambda: _finish(path, [message for part in found for message in part]))


def known(path: Path) -> bool:
    """Did this process write or verify the checkpoint, and are its files as they were then?"""
    try:
        return path in _verified and _verified[path] == _signatures(path)
    except OSError:
        return False


def remember(path: Path) -> None:
    """The checkpoint is verified, as it was just written by this process."""
    _verified[path] = _signatures(path)


def files_of(path: Path) -> list[str]:
    """Names of all files under `path`, relative to it."""
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir())


def _stated(path: Path) -> dict[str, Entry]:
    """The files that the manifest names, all of which are there in the size that it says, and no others where anything
    is read."""
    manifest, files = path / FILE, {}
    try:
        stated = json.loads(read_file(manifest))
        files = {name: {"size": int(e["size"]), "sha256": str(e["sha256"])} for name, e in stated["files"].items()}
        _ = stated["format"], stated["step"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path} has no readable {FILE} ({error}): it is incomplete.") from error
    if STATE not in files:
        raise CheckpointError(f"{manifest} does not name {STATE}: the checkpoint is damaged.")
    for name, entry in files.items():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise CheckpointError(f"{manifest} names {name!r}, which is outside the checkpoint.")
        if name_problem(name) or not (path / name).is_file():
            raise CheckpointError(f"{path / name} is missing: the checkpoint is damaged.")
        if (size := (path / name).stat().st_size) != entry["size"]:
            raise CheckpointError(
                f"{path / name} has {size:,} bytes, not the {entry['size']:,} of {FILE}: the checkpoint is damaged."
            )
    # Files beside the manifest are never read; those in folders might be, by whoever reads the folder.
    if strange := [name for name in files_of(path) if name not in files and "/" in name]:
        raise CheckpointError(
            f"{path / strange[0]} is not named in {FILE}: the checkpoint was changed after it was written. Take the "
            "file out, if it is yours."
        )
    return files


def _wrong(path: Path, stated: dict[str, Entry], names: Sequence[str]) -> list[str]:
    """The first of these files that is not what the manifest says."""
    for name in names:
        try:
            found = sha256_of(path / name)
        except OSError as error:
            return [f"{path / name} cannot be read: {error.strerror or error}."]
        if found != stated[name]["sha256"]:
            return [f"{path / name} does not match its SHA-256 in {FILE}: the checkpoint is damaged."]
    return []


def _finish(path: Path, wrong: list[str]) -> None:
    if wrong:
        raise CheckpointError(wrong[0])
    manifest, state = (_json(path / name) for name in (FILE, STATE))
    if any(manifest.get(name) != state.get(name) for name in ("format", "step")):
        raise CheckpointError(f"{path / FILE} does not agree with {STATE}: the checkpoint is damaged.")
    remember(path)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_file(path))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): the checkpoint is damaged.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no object: the checkpoint is damaged.")
    return found


def _signatures(path: Path) -> list[Any]:
    return [[name, *signature(path / name)] for name in files_of(path)]
