"""The journal of judges: what was asked and answered, appended line by line and never lost.

verdicts.jsonl has a line for each comparison that has a verdict, invalid.jsonl one for each answer without: those are
asked again by the next run. judges.json says how each evaluator was asked last, which is what a table counts.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from gipo_mc.errors import DataError
from gipo_mc.evaluation.judge_config import Orders
from gipo_mc.run.jsonl import JsonLines, lock_file, read_file, read_jsonl, storage_errors, write_atomically

VERDICTS, INVALID, JUDGES = "verdicts.jsonl", "invalid.jsonl", "judges.json"
#: Between two waits for the disk, which take longer than a fast judge.
_SYNC_SECONDS = 1.0
Side = Literal["ours", "theirs", "tie"]


@dataclass(frozen=True)
class Entry:
    """One line of verdicts.jsonl, or of invalid.jsonl, where `verdict` is null and `problem` says why.

    key: hash of the exact request, server, prompt version and repeat. setup: hash of all of that but the responses.
    text: as the model wrote it; reason: what stood before the verdict. usage: tokens that the server counted, null
    where it does not, and for a comparison that shares its request with another. asked: requests that it took.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    key: str
    setup: str
    pair: str
    opponent: str
    evaluator: str
    ours_first: bool
    repeat: int
    verdict: Side | None
    reason: str = ""
    text: str = ""
    problem: str = ""
    finish_reason: str = ""
    model: str = ""
    usage: Mapping[str, int] | None = None
    adapted: tuple[str, ...] = ()
    asked: int = 1

    @property
    def place(self) -> tuple[str, str, bool, int]:
        """What a comparison is known by among those of one evaluator and setup."""
        return self.setup, self.pair, self.ours_first, self.repeat


@dataclass(frozen=True)
class Setup:
    """How an evaluator is asked. setup: a hash of it, which every line of the journal carries. seed: of seeded
    orders."""

    evaluator: str
    kind: str
    server: str
    model: str
    prompt: str
    version: str
    settings: Mapping[str, Any]
    orders: Orders
    repeats: Annotated[int, Field(ge=1, le=100)]
    seed: int
    setup: str

    @property
    def sees_order(self) -> bool:
        """Is it shown two responses, one before the other? A reward model scores each alone."""
        return self.kind != "reward"


_ENTRY = TypeAdapter(Entry)
_SETUPS = TypeAdapter(dict[str, Setup])


class Known:
    """Verdicts that there are already, by request and by comparison."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = list(entries)
        self._known = {entry.key: entry for entry in entries}
        self._places = {entry.place for entry in entries}

    @property
    def entries(self) -> Sequence[Entry]:
        """All of them, in the order in which they came."""
        return self._entries

    def known(self, key: str) -> Entry | None:
        """A verdict on this request, of whichever pair."""
        return self._known.get(key)

    def has(self, place: tuple[str, str, bool, int]) -> bool:
        """Is there a verdict on this comparison?"""
        return place in self._places


class Journal(Known):
    """The journal of an evaluation's folder, open for one process at a time; use it as a context manager.

    Raises StorageError where another process has it, DataError where it is damaged. A last line that a killed process
    left unfinished is cut off.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._verdicts, self._invalid = (JsonLines(folder / name) for name in (VERDICTS, INVALID))
        self._writing = threading.Lock()
        self._synced = time.monotonic()
        self._lock = _locked(folder)
        try:
            for file in (self._verdicts, self._invalid):
                _mend(file.path)
            super().__init__(read_entries(folder))
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._sync()
        finally:
            os.close(self._lock)

    def add(self, entries: Sequence[Entry]) -> None:
        """Append entries, which no end of the process takes away when this returns; that of the machine takes the last
        second's. May be called from several threads."""
        with self._writing:
            for file, mine in (
                (self._verdicts, [entry for entry in entries if entry.verdict]),
                (self._invalid, [entry for entry in entries if not entry.verdict]),
            ):
                if mine:
                    file.append(*map(asdict, mine))
            if time.monotonic() > self._synced + _SYNC_SECONDS:
                self._sync()
            for entry in entries:
                if entry.verdict:
                    self._entries.append(entry)
                    self._known[entry.key] = entry
                    self._places.add(entry.place)

    def _sync(self) -> None:
        for file in (self._verdicts, self._invalid):
            file.sync()
        self._synced = time.monotonic()

    def note(self, setup: Setup) -> None:
        """Make this how the evaluator was asked last. One that is known keeps its place among the others."""
        rows = {known.evaluator: asdict(known) for known in read_setups(self._folder)} | {
            setup.evaluator: asdict(setup)
        }
        write_atomically(self._folder / JUDGES, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def read_entries(folder: Path, name: str = VERDICTS) -> list[Entry]:
    """The lines of verdicts.jsonl or invalid.jsonl; none where there is no such file. Raises DataError."""
    path = folder / name
    found: list[Entry] = []

    def take(row: dict[str, Any]) -> None:
        try:
            entry = _ENTRY.validate_python(row)
        except ValidationError as error:
            raise ValueError(_reason(error)) from None
        if (entry.verdict is None) != (name == INVALID):
            raise ValueError(f"{entry.verdict} is no verdict of this file")
        found.append(entry)

    if path.exists():
        read_jsonl(path, take)
    return found


def read_setups(folder: Path) -> list[Setup]:
    """How each evaluator was asked last; none where nobody was. Raises DataError where judges.json is damaged."""
    path = folder / JUDGES
    if not path.exists():
        return []
    try:
        return list(_SETUPS.validate_json(read_file(path)).values())
    except (OSError, ValueError) as error:
        why = _reason(error) if isinstance(error, ValidationError) else str(error)
        raise DataError(f"{path} is damaged ({why}): take it away and judge again, which writes it anew.") from error


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")


def _locked(folder: Path) -> int:
    """The lock of the folder, given back by closing it, or when the process ends. Raises StorageError."""
    path = folder / ".lock"
    with storage_errors(path):
        folder.mkdir(parents=True, exist_ok=True)

    def not_locked(error: OSError) -> str:
        if isinstance(error, BlockingIOError):
            return (
                f"{folder} is in use by another process: two at once would pay for the same answers twice. Wait for it."
            )
        return f"{folder} cannot be locked ({error.strerror}): choose another disk with --out."

    return lock_file(path, not_locked)


def _mend(path: Path) -> None:
    """Cut off a last line that a killed process left unfinished; one that only lacks its newline gets it."""
    if not path.exists():
        return
    with storage_errors(path), open(path, "rb+") as file:
        raw = file.read()
        tail = raw[raw.rfind(b"\n") + 1 :]
        if not tail:
            return
        try:
            json.loads(tail.decode("utf-8"))
            file.write(b"\n")
        except ValueError:
            file.truncate(len(raw) - len(tail))
