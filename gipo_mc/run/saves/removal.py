"""Removal of older checkpoints."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

from gipo_mc.errors import CheckpointError
from gipo_mc.parallel.collectives import on_main
from gipo_mc.run import manifest
from gipo_mc.run.jsonl import storage_errors
from gipo_mc.run.saves.places import TEMPORARY, place_of, steps


def prune(folder: Path, keep: int, *, content: bool = True, wait: bool = True) -> None:
    """Remove what is older than the newest `keep` checkpoints that verify. Every rank calls it.

    A damaged one does not count: it stays where it is, to be looked at, until `keep` newer ones verify. What this
    process wrote or verified is not read again unless its files changed; the rest is read by all ranks together, once:
    later starts know it.
    content: as of `manifest.verify`. wait: until the files are gone, not only out of sight. Raises StorageError.
    """
    found: list[int] = on_main(lambda: steps(folder))
    usable, outdated = 0, []
    for step in reversed(found if len(found) > keep else []):
        path = place_of(folder, step)
        if usable == keep:
            outdated.append(path)
        elif _verifies(path, content):
            usable += 1
    on_main(lambda: _remove_all(outdated, wait))


def remove(path: Path, *, wait: bool = True) -> None:
    """Remove a checkpoint, so that no part of it is ever visible as one. Raises OSError."""
    aside = path.with_name(f"{TEMPORARY}removed-{path.name}")
    path.rename(aside)
    if wait:
        shutil.rmtree(aside)
        return
    # A large file takes its time. What is left where the process ends first goes before the next save.
    threading.Thread(target=shutil.rmtree, args=(aside,), kwargs={"ignore_errors": True}, daemon=True).start()


def _remove_all(paths: list[Path], wait: bool) -> None:
    for path in paths:
        with storage_errors(path):
            remove(path, wait=wait)


def _verifies(path: Path, content: bool) -> bool:
    if on_main(lambda: manifest.known(path)):
        return True
    try:
        manifest.verify(path, together=True, content=content, keep=True)
    except CheckpointError:
        return False
    return True
