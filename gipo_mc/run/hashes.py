"""SHA-256 of files: how fast they are read, how ranks share them, and what need not be read again."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from gipo_mc.errors import StorageError
from gipo_mc.run.jsonl import read_file, write_atomically

#: Small enough for a processor's cache, which is faster than one large block a read.
_BLOCK = 1 << 18


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits. Raises OSError."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as stream:
        while size := stream.readinto(block):
            digest.update(block[:size])
    return digest.hexdigest()


def shares(sizes: Mapping[str, int], ranks: int) -> list[list[str]]:
    """Files of a checkpoint by the rank that hashes them, about as many bytes each.

    A rank gets what it wrote (`__<rank>_<n>.distcp`), which its machine still holds in memory, unless that is more
    than its share.
    """
    share = sum(sizes.values()) / ranks
    load, parts = [0] * ranks, [[] for _ in range(ranks)]  # type: tuple[list[int], list[list[str]]]
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        written = re.match(r"__(\d+)_", name.rpartition("/")[2])
        rank = int(written[1]) if written else 0
        if rank >= ranks or load[rank] + sizes[name] > 1.05 * share:
            rank = load.index(min(load))
        load[rank] += sizes[name]
        parts[rank].append(name)
    return parts


def content_of(paths: Iterable[Path]) -> str:
    """A hash of names and whole contents of files, 32 digits. A file that has not changed since it was hashed on this
    machine (same path, size, time and inode) is not read again: a 70B model takes a minute or two the first time."""
    known = _Known(_cache_folder())
    lines = [f"{path.name} {known.sha256_of(path)}\n" for path in sorted(paths)]
    known.keep()
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:32]


def signature(path: Path) -> list[int]:
    """What is not the same where a file was written anew: size, time of change (nanoseconds), inode."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ino]


class _Known:
    """Hashes of files by path and signature, in a file of the user's cache, where there is such a place."""

    def __init__(self, folder: Path | None) -> None:
        self._file = folder / "hashes.json" if folder else None
        self._new: dict[str, list[object]] = {}
        try:
            found = json.loads(read_file(self._file)) if self._file else {}
        except (OSError, ValueError, RecursionError):
            found = {}  # none yet, or damaged: the files are hashed again
        self._stored: dict[str, object] = found if isinstance(found, dict) else {}

    def sha256_of(self, path: Path) -> str:
        key, now = str(path.resolve()), signature(path)
        match self._stored.get(key):
            case [size, time, inode, str(digest)] if [size, time, inode] == now and re.fullmatch(
                "[0-9a-f]{64}", digest
            ):
                return digest
        digest = sha256_of(path)
        if signature(path) == now:
            self._new[key] = [*now, digest]
        return digest

    def keep(self) -> None:
        if not self._new or self._file is None:
            return
        kept = {key: value for key, value in self._stored.items() if os.path.exists(key)} | self._new
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, json.dumps(kept, indent=1))
        except (OSError, StorageError):
            return  # no cache where none can be written: the files are hashed again the next time


def _cache_folder() -> Path | None:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gipo_mc"
    except RuntimeError:  # a user without a home, as containers have them
        return None
