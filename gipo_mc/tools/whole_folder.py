"""Folders that appear with everything in them: a job that is killed while it makes one leaves none that looks made."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gipo_mc.run.jsonl import storage_errors

#: What was left behind by a job that was killed is removed after this many seconds; another job may be at work there.
_STALE_SECONDS = 3600.0


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, which becomes `folder` at the end; where something fails it is removed.

    A `folder` that has files keeps those that are not made again, and gets config.json last. Raises StorageError.
    """
    temporary = folder.parent / f".{folder.name}.tmp-{os.getpid()}"
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        for stale in folder.parent.glob(f".{folder.name}.tmp-*"):
            if stale == temporary or time.time() - stale.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(stale)
        temporary.mkdir()
    try:
        with storage_errors(folder):
            yield temporary
            _sync(temporary)
            if folder.is_dir() and any(folder.iterdir()):
                for path in sorted(temporary.iterdir(), key=lambda path: path.name == "config.json"):
                    path.replace(folder / path.name)
            else:
                temporary.rename(folder)
            _sync_one(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
