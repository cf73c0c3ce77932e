"""Sums of files: SHA-256 for what is compared between runs, BLAKE3 for checkpoints; how ranks share the reading, and
what need not be read again."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from gipo_mc.errors import StorageError
from gipo_mc.parallel.saving.files import PART
from gipo_mc.run.jsonl import read_file, write_atomically

#: Fits a core's cache, so that the hash does not fetch from memory what was just read.
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Algorithm:
    """A hash that manifests name. part: bytes of a file that have a sum of their own, so that ranks can share it."""

    title: str
    new: Callable[[], Any]
    part: int


#: By the name that manifests use. BLAKE3 is what is written; SHA-256 of whole files is read for ever.
ALGORITHMS = {
    "blake3": Algorithm("BLAKE3", blake3, PART),
    "sha256": Algorithm("SHA-256", hashlib.sha256, sys.maxsize),
}


@dataclass(frozen=True, order=True)
class Part:
    """The bytes from `begin` to `begin + size` of a file, which have a sum of their own."""

    name: str
    begin: int
    size: int


def parts_of(name: str, size: int, algorithm: str) -> list[Part]:
    """A file in the parts that the algorithm takes, in order; an empty file is one part, too."""
    largest = ALGORITHMS[algorithm].part
    return [Part(name, begin, min(largest, size - begin)) for begin in range(0, max(size, 1), largest)]


def sum_of(path: Path, begin: int, size: int, algorithm: str) -> str:
    """The sum of `size` bytes of a file, or of as many as there are: 64 hexadecimal digits. Raises OSError.

    Reads into one block instead of mapping the file: a mapped file that shrinks ends the process (SIGBUS).
    """
    digest = ALGORITHMS[algorithm].new()
    block = memoryview(bytearray(min(_BLOCK, size)))
    with path.open("rb", buffering=0) as stream:
        stream.seek(begin)
        while size and (read := stream.readinto(block[:size])):
            digest.update(block[:read])
            size -= read
    return str(digest.hexdigest())


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits. Raises OSError."""
    return sum_of(path, 0, path.stat().st_size, "sha256")


def shares(parts: Iterable[Part], ranks: int) -> list[list[Part]]:
    """Parts of a checkpoint's files by the rank that hashes them, about as many bytes each.

    A rank gets what it wrote (`__<rank>_<n>.distcp`), which its machine still holds in memory, as far as that is no
    more than its share; what is left goes to the rank that has least.
    """
    ordered = sorted(parts, key=lambda part: (-part.size, part))
    share = sum(part.size for part in ordered) / ranks
    load, found = [0] * ranks, [[] for _ in range(ranks)]  # type: tuple[list[int], list[list[Part]]]
    left = []
    for part in ordered:
        written = re.match(r"__(\d+)_", part.name.rpartition("/")[2])
        rank = int(written[1]) if written else 0
        if rank >= ranks or load[rank] + part.size > 1.05 * share:
            left.append(part)
            continue
        load[rank] += part.size
        found[rank].append(part)
    for part in left:
        rank = load.index(min(load))
        load[rank] += part.size
        found[rank].append(part)
    return found


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
