"""The rows of a log file that grows: only what is new is read.

A file may be absent, end in the middle of a line, be replaced by a shorter one (a run that continues from a checkpoint
takes back what it logged after it) or hold a damaged line: each is what a run folder can look like while one looks.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

#: Of a file that is longer when it is first met, only samples are read, and its end: so many bytes, looked into at so
#: many places of so many bytes.
SKIMMED_FROM = 16 << 20
_END, _PLACES, _PLACE = 4 << 20, 1000, 16 << 10
#: Bytes read at a time, and the longest line that is one.
_BLOCK, _LONGEST = 4 << 20, 32 << 20
#: Bytes before the place that was read up to, which tell whether the file is still the one that was read.
_MARK = 64


@dataclass
class _Read:
    """How far a file was read. identity: device and inode. mark: the last bytes before `offset`."""

    identity: tuple[int, int]
    offset: int = 0
    mark: bytes = b""


class Tail:
    """Rows of a file of JSON objects with a whole "step": metrics, of which numbers and nulls are held.

    kept: rows that are held, about; of more, every row of the newest quarter stays and of the older ones every second,
    again and again, so that a run of any length has a curve. newest: hold the newest rows instead, and read no more of
    a long file, whatever is in them. Attributes: `rows`, oldest first; `damaged`, lines that were left out;
    `unfinished`: does the file end within a line?
    """

    def __init__(self, path: Path, kept: int = 600, newest: bool = False) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.damaged = 0
        self.unfinished = False
        self._kept, self._newest = kept, newest
        self._read: _Read | None = None

    def refresh(self) -> bool:
        """Read what is new; did anything change?"""
        try:
            # Not blocking: a named pipe would never open.
            with open(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode):
                    raise OSError("no regular file")
                return self._refresh(file, (found.st_dev, found.st_ino), found.st_size)
        except OSError:
            there = self._read is not None
            self._forget()
            return there

    def _forget(self) -> None:
        self.rows, self.damaged, self.unfinished, self._read = [], 0, False, None

    def _refresh(self, file: BinaryIO, identity: tuple[int, int], size: int) -> bool:
        read, changed = self._read, False
        if read is None or read.identity != identity or size < read.offset or not _same(file, read):
            self._forget()
            read, changed = _Read(identity), True
            self._read = read
            if size > (_END if self._newest else SKIMMED_FROM):
                self._skim(file, size, read)
        while read.offset < size:
            file.seek(read.offset)
            data = file.read(min(_BLOCK, size - read.offset))
            while b"\n" not in data and len(data) < min(_LONGEST, size - read.offset):
                more = file.read(_BLOCK)
                if not more:
                    break
                data += more
            whole = data.rfind(b"\n") + 1
            if not whole and len(data) < _LONGEST:
                break  # a line that is still being written
            whole = whole or len(data)
            for line in data[:whole].split(b"\n"):
                self._take(line)
            read.offset += whole
            read.mark = (read.mark + data[:whole])[-_MARK:]
            changed = True
        unfinished = read.offset < size
        changed |= unfinished != self.unfinished
        self.unfinished = unfinished
        self._thin()
        return changed

    def _skim(self, file: BinaryIO, size: int, read: _Read) -> None:
        """Rows from all over a long file, of each place the one that says most; then go on at its end."""
        end = size - _END
        for place in range(0 if self._newest else _PLACES):
            file.seek(end * place // _PLACES)
            lines = file.read(_PLACE).split(b"\n")
            whole = lines[0 if place == 0 else 1 : -1]
            if whole:
                self._take(max(whole, key=len))
        file.seek(end)
        begin = file.read(_LONGEST).find(b"\n") + 1
        read.offset = end + begin
        file.seek(max(0, read.offset - _MARK))
        read.mark = file.read(min(_MARK, read.offset))

    def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            row = json.loads(line)
            step = row["step"]
            if type(step) is not int or not 0 <= step < 2**53:
                raise ValueError("no step")
        except (ValueError, KeyError, TypeError, RecursionError):
            self.damaged += 1
            return
        if not self._newest:
            while self.rows and self.rows[-1]["step"] >= step:  # said again: the later line counts
                self.rows.pop()
            # Names come again in every row, and what is no number is none of a metric.
            row = {sys.intern(name): value for name, value in row.items() if value is None or _is_number(value)}
        self.rows.append(row)

    def _thin(self) -> None:
        if self._newest:
            del self.rows[: -self._kept]
            return
        while len(self.rows) > 2 * self._kept:
            quarter = len(self.rows) - self._kept // 4
            old, new = self.rows[:quarter], self.rows[quarter:]
            # Of two rows the one that says more: those with an evaluation are few.
            self.rows = [max(old[at : at + 2], key=len) for at in range(0, len(old), 2)] + new


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300


def _same(file: BinaryIO, read: _Read) -> bool:
    file.seek(read.offset - len(read.mark))
    return file.read(len(read.mark)) == read.mark
