"""Which files of a checkpoint a verification has read that have not changed since: a start need not read them again.

    runs/<name>/.verified.json    {"step_00000120": {"shards/__0_0.distcp": [size, mtime, ctime, inode], ...}}

A file that is written to gets another time, whatever its size; one that is copied or put back from a backup another
inode, too. What a disk changes by itself leaves all of them as they are: checkpoint.verify says what to do about it.
Where this file cannot be read or written, everything is read.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gipo_mc.errors import StorageError
from gipo_mc.run.jsonl import read_file, write_atomically

FILE = ".verified.json"
#: A file that changed so shortly before it was read could change again and keep its time: clocks tick coarsely.
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class Reading:
    """A verification that begins. names: the files to read. seen: signatures of all files, taken before. now_ns: when
    that was, by the clock of the file system; None where nothing is to be remembered."""

    path: Path
    names: list[str]
    seen: dict[str, list[int]]
    now_ns: int | None

    def keep(self) -> None:
        """All files are what the manifest says: remember it, where it was asked for."""
        if self.now_ns is None:
            return
        settled = {name: found for name, found in self.seen.items() if found[2] < self.now_ns - _SETTLED_NS}
        known = {name: entry for name, entry in _stored(self.path).items() if self.path.with_name(name).exists()}
        if known.get(self.path.name, {}) == settled:
            return
        with suppress(OSError, StorageError):  # then everything is read the next time
            write_atomically(_file(self.path), json.dumps(known | {self.path.name: settled}) + "\n")


def begin(path: Path, names: Iterable[str], manifest: str, *, content: bool, keep: bool) -> Reading:
    """What of the files `names` of checkpoint `path` is to be read: none without `content`. manifest: the name of the
    file that says what they should be: where it is another one, nothing is known. keep: is what is read to be
    remembered? Raises OSError."""
    seen = {name: _signature(path / name) for name in [*names, manifest]}
    known = _stored(path).get(path.name)
    if not isinstance(known, dict) or known.get(manifest) != seen[manifest]:
        known = {}
    to_read = [name for name in names if known.get(name) != seen[name]] if content else []
    return Reading(path, to_read, seen, _now_ns(path) if content and keep else None)


def _signature(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _now_ns(path: Path) -> int:
    """The time by the clock of the file system, which may be another machine's; 0 where nothing can be written."""
    try:
        with tempfile.TemporaryFile(dir=path.parent.parent) as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return 0


def _file(path: Path) -> Path:
    return path.parent.parent / FILE


def _stored(path: Path) -> dict[str, object]:
    try:
        found = json.loads(read_file(_file(path)))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
