"""Where ranks that share a machine meet: the memory of a process group, and the processes that it belongs to."""

from __future__ import annotations

import json
import os
import select
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from gipo_mc.ops.shared_memory import Room, available, new_file

#: Most ranks of a job. A room has letters for each pair of ranks, in pages that exist once they are used.
MOST_RANKS = 32

#: Of each global rank of this job, a descriptor that becomes readable when its process ends; -1: there is none. Empty
#: where the job's ranks do not share memory.
_processes: list[int] = []


def room_of(store: dist.Store, rank: int, ranks: int, everyone: Sequence[int]) -> Room | None:
    """The room of a new group of two ranks or more; None on all of them where they share no memory.

    store: of the group alone. everyone: the global ranks of the group, or none for the job's first group, of all ranks,
    which finds out whether the job's ranks share memory.
    """
    if not everyone:
        return _meet(store, rank, ranks)
    return _open_room(store, rank, ranks) if _processes and ranks > 1 else None


def has_ended(rank: int) -> bool:
    """Has the process of this global rank ended? False where the system does not tell."""
    if _processes[rank] < 0:
        return False
    poll = select.poll()
    poll.register(_processes[rank], select.POLLIN)
    return bool(poll.poll(0))


def _meet(store: dist.Store, rank: int, ranks: int) -> Room | None:
    """The room of all ranks, where all of them can map it; None on all of them where one cannot."""
    _forget()
    if not 1 < ranks <= MOST_RANKS:
        return None
    machine = Path("/proc/sys/kernel/random/boot_id")
    own = {"pid": os.getpid(), "machine": machine.read_text() if available() and machine.exists() else ""}
    store.set(f"memory/rank{rank}", json.dumps(own))
    others = [json.loads(store.get(f"memory/rank{other}")) for other in range(ranks)]
    if not all(other["machine"] and other["machine"] == own["machine"] for other in others):
        return None
    room = _open_room(store, rank, ranks)
    if room is None:
        return None
    for other in others:
        try:
            _processes.append(os.pidfd_open(other["pid"]))
        except OSError:  # kernels before 5.3: the time-out alone finds a lost rank
            _processes.append(-1)
    return room


def _forget() -> None:
    for process in _processes:
        if process >= 0:
            os.close(process)
    _processes.clear()


def _open_room(store: dist.Store, rank: int, ranks: int) -> Room | None:
    """A new room of a group; None on all its ranks where one of them cannot map it (another container, or user).

    The first rank makes the room's file, which has no name; the others open it among the descriptors of its process.
    """
    file, room = -1, None
    try:
        if rank == 0:
            file = new_file(ranks)
            store.set("memory/room", json.dumps([os.getpid(), file, os.fstat(file).st_ino]))
        else:
            process, number, inode = json.loads(store.get("memory/room"))
            file = os.open(f"/proc/{process}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
            if os.fstat(file).st_ino != inode:
                raise OSError(f"the file of process {process} is not the room that was made")
        room = Room(file, ranks, rank)
    except OSError:
        if rank == 0:
            store.set("memory/room", "[0, 0, 0]")
    store.set(f"memory/mapped{rank}", "yes" if room else "no")
    answers = [store.get(f"memory/mapped{other}") for other in range(ranks)]
    if file >= 0:
        os.close(file)  # not before all have looked for it
    return room if all(answer == b"yes" for answer in answers) else None
