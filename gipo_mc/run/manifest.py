"""MANIFEST.json: size and sums of every file of a checkpoint, and the check of a checkpoint against it.

    {"format": 1, "step": 120, "megatron-core": "0.16.1",
     "files": {"state.json": {"size": 871, "blake3": ["9f..."]}, ...}}

A file has a BLAKE3 sum for each 64 MiB, which ranks share; checkpoints of before that have one SHA-256 a file, and are
read as ever. Megatron-core's version is that of the writer; older checkpoints do not name it. What was verified is
remembered for as long as the process runs and the files stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from gipo_mc.config import name_problem
from gipo_mc.errors import CheckpointError
from gipo_mc.parallel.collectives import on_main
from gipo_mc.parallel.disk import sync, write_synced
from gipo_mc.parallel.megatron.versions import INSTALLED
from gipo_mc.parallel.saving.patience import patient
from gipo_mc.run.hashes import ALGORITHMS, Part, parts_of, shares, signature, sum_of
from gipo_mc.run.jsonl import read_file
from gipo_mc.run.saves import verified
from gipo_mc.run.saves.verified import Reading

FORMAT = 1
FILE = "MANIFEST.json"
STATE = "state.json"
WRITER = "megatron-core"
#: The hash of what is written.
WRITTEN = "blake3"

_verified: dict[Path, list[Any]] = {}


@dataclass(frozen=True)
class Entry:
    """What a manifest says of a file: its size in bytes, and a sum for each of its parts."""

    size: int
    algorithm: str
    sums: list[str]


def write(path: Path, step: int, files: dict[str, Entry]) -> None:
    """Write the manifest of `path`, whose files are `files`: the last file of a checkpoint. Raises OSError."""
    entries = {name: {"size": entry.size, entry.algorithm: entry.sums} for name, entry in files.items()}
    stated = {"format": FORMAT, "step": step, WRITER: INSTALLED, "files": entries}
    write_synced(path / FILE, json.dumps(stated, indent=1).encode())


def describe(path: Path, written: Mapping[str, Entry]) -> dict[str, Entry]:
    """Size and sums of every file under `path`, all of which are on the disk then. Raises OSError.

    written: of the files that were summed while they were written, and are on the disk; the others are read.
    """
    found = {}
    for name in files_of(path):
        size = (path / name).stat().st_size
        if name in written and written[name].size != size:
            raise OSError(f"{path / name} has {size:,} bytes, and {written[name].size:,} were written")
        found[name] = written.get(name) or _read(path, name, size)
    if lost := sorted(written.keys() - found.keys()):
        raise OSError(f"{path / lost[0]} was written and is not there")
    return found


def _read(path: Path, name: str, size: int) -> Entry:
    sync(path / name)
    return Entry(
        size, WRITTEN, [sum_of(path / name, part.begin, part.size, WRITTEN) for part in parts_of(name, size, WRITTEN)]
    )


def verify(path: Path, *, together: bool = False, content: bool = True, keep: bool = False) -> None:
    """Check every file of a checkpoint against its manifest. Raises CheckpointError naming the first that differs.

    together: every rank calls it and reads a share of the files; all of them raise. content: compare sums of what was
    not read before, or has changed since; else names and sizes alone. keep: remember what was read for later starts.
    """
    on_one: Callable[[Callable[[], Any]], Any] = on_main if together else lambda work: work()
    stated, reading = on_one(lambda: _opened(path, content, keep))
    parts = {name: _parts(name, stated[name]) for name in reading.names}
    if together:
        found: list[list[str]] = [[]] * dist.get_world_size()
        dist.all_gather_object(found, _wrong(path, stated, _own_share(parts)), group=patient())
        wrong = [message for part in found for message in part]
    else:
        wrong = _wrong(path, stated, [part for of_file in parts.values() for part in of_file])
    on_one(lambda: _finish(path, wrong, reading))


def _opened(path: Path, content: bool, keep: bool) -> tuple[dict[str, Entry], Reading]:
    stated = _stated(path)
    try:
        return stated, verified.begin(path, stated, FILE, content=content, keep=keep)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error}): the checkpoint is damaged.") from error


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


def _parts(name: str, entry: Entry) -> list[Part]:
    return parts_of(name, entry.size, entry.algorithm)


def _own_share(parts: dict[str, list[Part]]) -> list[Part]:
    everything = [part for of_file in parts.values() for part in of_file]
    return shares(everything, dist.get_world_size())[dist.get_rank()]


def _stated(path: Path) -> dict[str, Entry]:
    """The files that the manifest names, all of which are there in the size that it says, and no others where anything
    is read."""
    manifest, files = path / FILE, {}
    try:
        stated = json.loads(read_file(manifest))
        files = {name: _entry(manifest, name, entry) for name, entry in stated["files"].items()}
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
        if (size := (path / name).stat().st_size) != entry.size:
            raise CheckpointError(
                f"{path / name} has {size:,} bytes, not the {entry.size:,} of {FILE}: the checkpoint is damaged."
            )
        if len(entry.sums) != len(_parts(name, entry)):
            raise CheckpointError(
                f"{manifest} has {len(entry.sums)} sums for the {size:,} bytes of {name}: the checkpoint is damaged."
            )
    # Files beside the manifest are never read; those in folders might be, by whoever reads the folder.
    if strange := [name for name in files_of(path) if name not in files and "/" in name]:
        raise CheckpointError(
            f"{path / strange[0]} is not named in {FILE}: the checkpoint was changed after it was written. Take the "
            "file out, if it is yours."
        )
    return files


def _entry(manifest: Path, name: str, stated: dict[str, Any]) -> Entry:
    """Raises CheckpointError for a hash that is not known, and the errors of Python for another shape."""
    size, others = int(stated["size"]), sorted(key for key in stated if key != "size")
    if len(others) != 1 or others[0] not in ALGORITHMS:
        raise CheckpointError(
            f"{manifest} has no sum of {name!r} that this version of gipo_mc can check: it names "
            f"{', '.join(repr(key[:40]) for key in others[:5]) or 'none'}, not one of {', '.join(ALGORITHMS)}. It is "
            "damaged, or of a later version, which can read it."
        )
    (algorithm,) = others
    sums = stated[algorithm] if isinstance(stated[algorithm], list) else [stated[algorithm]]
    return Entry(size, algorithm, [str(one) for one in sums])


def _wrong(path: Path, stated: dict[str, Entry], parts: Sequence[Part]) -> list[str]:
    """The first of these parts that is not what the manifest says."""
    for part in parts:
        entry = stated[part.name]
        kind = ALGORITHMS[entry.algorithm]
        try:
            found = sum_of(path / part.name, part.begin, part.size, entry.algorithm)
        except OSError as error:
            return [f"{path / part.name} cannot be read: {error.strerror or error}."]
        if found != entry.sums[part.begin // kind.part]:
            where = f" in bytes {part.begin:,} to {part.begin + part.size:,}" if len(entry.sums) > 1 else ""
            return [
                f"{path / part.name} does not match its {kind.title} sum in {FILE}{where}: the checkpoint is damaged."
            ]
    return []


def _finish(path: Path, wrong: list[str], reading: Reading) -> None:
    if wrong:
        raise CheckpointError(wrong[0])
    manifest, state = (_json(path / name) for name in (FILE, STATE))
    if any(manifest.get(name) != state.get(name) for name in ("format", "step", WRITER)):
        raise CheckpointError(f"{path / FILE} does not agree with {STATE}: the checkpoint is damaged.")
    reading.keep()
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
