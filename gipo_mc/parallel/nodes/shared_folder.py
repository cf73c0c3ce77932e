"""Do all hosts see the folder that rank 0 sees? Each could have one of its own under the same name: then every rank
would write its part of a checkpoint where nobody looks for it."""

from __future__ import annotations

import os
import secrets
import socket
import time
from pathlib import Path

import torch.distributed as dist

from gipo_mc.errors import StorageError
from gipo_mc.parallel.collectives import on_main
from gipo_mc.parallel.launcher import several_hosts

#: Seconds until a new file shows on another host: those of a network file system remember what was not there.
_SECONDS = 15.0


def check_shared(folder: Path) -> None:
    """Every rank calls it. Raises StorageError on all of them where a host sees another folder, or none."""
    if not several_hosts():
        return
    mark, main = on_main(lambda: (_left(folder), socket.gethostname()))
    deadline = time.monotonic() + _SECONDS
    while not (seen := _is_there(folder, mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    blind: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(blind, "" if seen else socket.gethostname())
    if dist.get_rank() == 0:
        (folder / mark).unlink(missing_ok=True)
    if others := sorted(set(blind) - {""}):
        raise StorageError(
            f"The run folder {folder.resolve()} of host {main} is not what {', '.join(others[:8])} "
            f"{'see' if len(others) > 1 else 'sees'} there: put run.dir on a file system that all hosts of the job "
            "share. Every rank writes its part of a checkpoint."
        )


def _left(folder: Path) -> str:
    mark = f".seen-by-all-{secrets.token_hex(4)}"
    (folder / mark).touch()
    return mark


def _is_there(folder: Path, mark: str) -> bool:
    try:
        return mark in os.listdir(folder)  # asks the server, where `exists` may answer from a cache
    except OSError:
        return False
