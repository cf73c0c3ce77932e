"""JSON lines as the run folder keeps them: one object a line, appended whole or not at all.

A job can be killed in the middle of a write, so a last line without its newline is expected and left out with a
note; anything else that does not parse is damage, and a `DataError` names file and line.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gipo_mc.config import hide
from gipo_mc.errors import DataError, StorageError
from gipo_mc.run.saves.places import standing

# What a terminal may act on or what hides text: C0, DEL, C1, line separators, bidirectional overrides, and halves of
# surrogate pairs, which have no UTF-8. JSON itself escapes only C0.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` with control characters written as escapes (`\\n`, `\\x1b`, `\\u202e`): safe to print, one line. What came
    from the environment is hidden (`gipo_mc.config.hide`)."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), hide(text))


def printable_lines(text: str) -> str:
    """`printable`, with the line breaks kept."""
    return "\n".join(map(printable, text.split("\n")))


def one_line(text: str) -> str:
    """A message of several lines as one: what stands below a line that ends with a colon is a list, "a: b; c". Other
    control characters stay, for `printable`."""
    lines = [line.strip().removeprefix("- ") for line in text.split("\n") if line.strip()]
    joined = lines[0] if lines else ""
    for line in lines[1:]:
        joined += f" {line}" if joined.endswith((":", ".")) else f"; {line}"
    return joined


@contextmanager
def storage_errors(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn an OSError while writing `path` into a StorageError with the free (and `needed`) bytes of its disk."""
    try:
        yield
    except OSError as error:
        raise StorageError(_storage_sentence(path, error, needed)) from error


def _storage_sentence(path: Path, error: OSError, needed: int | None) -> str:
    try:
        free = f"{shutil.disk_usage(standing(path)).free:,} bytes are free on its disk"
    except OSError:
        free = "the free space of its disk is unknown"
    wanted = f", {needed:,} bytes were needed" if needed is not None else ""
    return (
        f"{path} cannot be written: {error.strerror or error}; {free}{wanted}. Make room or give permission, or choose "
        "another place (run.dir of a run, --out of other commands); the same command then goes on with what was kept, "
        "a run from the last checkpoint."
    )


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` by `text` (UTF-8): a reader, or a crash, sees the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    data = hide(text).encode("utf-8", "backslashreplace")
    with storage_errors(path, len(data)):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def encode(row: Mapping[str, Any]) -> str:
    """One line of JSON. NaN and infinities, which JSON does not have, become null at any depth; what came from the
    environment is hidden."""
    line = json.dumps(_finite(row), ensure_ascii=False, allow_nan=False)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", line)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {hide(str(key)): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return hide(value) if isinstance(value, str) else value


def lock_file(path: Path, sentence: Callable[[OSError], str]) -> int:
    """The descriptor of a lock file that this process now has: closing it, or the end of the process, gives it back.

    Raises StorageError where the file cannot be made, and with `sentence` of the error where another process has the
    lock (BlockingIOError) or the file system has no locks.
    """
    while True:
        with storage_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise StorageError(sentence(error)) from (None if isinstance(error, BlockingIOError) else error)
        if _is_at(path, descriptor):
            return descriptor
        os.close(descriptor)  # its holder removed the file before this process had the lock: another would make its own


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def holder_of(lock: Path) -> str:
    """In words, who has a run's lock, by what it wrote into the file."""
    try:
        held = json.loads(lock.read_text(encoding="utf-8"))
        return f"process {held['pid']} on {held['host']} (since {held['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another job"  # it is between taking the lock and writing its name


def counts_iterations(row: dict[str, Any]) -> None:
    """Raises ValueError for a row without an integer "step"."""
    if type(row.get("step")) is not int or not 0 <= row["step"] < 2**53:
        raise ValueError('"step" must be an integer that counts iterations')


class JsonLines:
    """A file that grows by whole lines. Not thread-safe; one writer, which the lock of the run folder ensures."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Append `rows`, handed to the operating system before this returns. On failure the file is as before."""
        data = "".join(encode(row) + "\n" for row in rows).encode("utf-8")
        with storage_errors(self.path, len(data)), open(self.path, "ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                while data:
                    data = data[file.write(data) :]
            except OSError:
                file.truncate(size)
                raise

    def sync(self) -> None:
        """Wait until the lines are on the disk."""
        if self.path.exists():
            with storage_errors(self.path), open(self.path, "rb") as file:
                os.fsync(file.fileno())

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> int:
        """Rewrite the file with the `wanted` rows only, atomically. Returns how many lines went away."""
        if not self.path.exists():
            return 0
        found = read_jsonl(self.path)
        kept = [row for row in found.rows if wanted(row)]
        dropped = len(found.rows) - len(kept) + bool(found.note)
        if dropped or found.unfinished:
            self._replace(kept)
        return dropped

    def mend(self, check: Callable[[dict[str, Any]], None] = counts_iterations) -> list[dict[str, Any]]:
        """Take a last line away that a killed job left unfinished. Returns the rows; raises as `read_jsonl`."""
        if not self.path.exists():
            return []
        found = read_jsonl(self.path, check)
        if found.unfinished:
            self._replace(found.rows)
        return found.rows

    def _replace(self, rows: Sequence[Mapping[str, Any]]) -> None:
        write_atomically(self.path, "".join(encode(row) + "\n" for row in rows))


@dataclass(frozen=True)
class Lines:
    """What a file held.

    rows: one dictionary a line. lines: line number of each row, from 1. unfinished: the file does not end with a
    newline. note: a sentence about a last line that was left out for that, else empty.
    """

    rows: list[dict[str, Any]]
    lines: list[int]
    unfinished: bool = False
    note: str = ""


def read_file(path: Path) -> bytes:
    """The whole of a regular file. Raises OSError for anything else: a named pipe would never end."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        return file.read()


def read_jsonl(path: Path, check: Callable[[dict[str, Any]], None] = counts_iterations) -> Lines:
    """All rows of a log file: JSON objects, each of which `check` lets pass.

    Raises DataError, "file:line: reason", for a line that is none. A last line that does not parse and has
    no newline is what a killed job leaves: it is left out, and `note` says so.
    """
    try:
        raw = read_file(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    lines = raw.split(b"\n")
    for number, line in enumerate(lines, start=1):
        last_and_open = number == len(lines)
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
            if not isinstance(row, dict):
                raise ValueError(f"a JSON object is expected, this is a {type(row).__name__}")
            check(row)
        except (ValueError, RecursionError) as error:
            if last_and_open:
                note = (
                    f"{path}:{number}: the last line is incomplete (the job ended while writing it) and was left out."
                )
                return Lines(rows, numbers, True, note)
            raise DataError(
                f"{path}:{number}: not a line of this program: {error}. Take the line out, or restore the file."
            ) from error
        rows.append(row)
        numbers.append(number)
    return Lines(rows, numbers, unfinished=bool(lines[-1]))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
