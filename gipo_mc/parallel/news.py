"""What ranks tell each other outside collectives, through the rendezvous store: the first error, and long work.

A collective cannot do either: a rank that failed takes part in none, and one that waits for rank 0's download would
run into the time-out that is there to find hangs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import count

import torch.distributed as dist

_FIRST_ERROR = "gipo_mc/first_error"
_calls = count()


@dataclass(frozen=True)
class RankError:
    """The first error of a job: on which rank, with which exit code and message."""

    rank: int
    exit_code: int
    message: str


def record_error(exit_code: int, message: str) -> None:
    """Tell the job that this rank is about to fail; the first rank to do so is remembered."""
    if _store().add(f"{_FIRST_ERROR}/claimed", 1) == 1:
        _store().set(_FIRST_ERROR, json.dumps(asdict(RankError(dist.get_rank(), exit_code, message))))


def first_to_say(message: str) -> bool:
    """Is this rank the first with this message? For what many ranks find at once and a person should read once."""
    return _store().add(f"gipo_mc/said/{hashlib.sha256(message.encode()).hexdigest()}", 1) == 1


def first_error() -> RankError | None:
    """The first error that a rank announced, or None."""
    if not dist.is_initialized() or not _store().check([_FIRST_ERROR]):
        return None
    return RankError(**json.loads(_store().get(_FIRST_ERROR)))


def while_others_wait(work: Callable[[], None]) -> None:
    """Call `work` on rank 0 and let the other ranks wait for it, however long it takes. `work` must not raise.

    If rank 0 dies, torchrun ends the ranks that wait.
    """
    done = f"gipo_mc/done/{next(_calls)}"
    if dist.get_rank() == 0:
        work()
        _store().set(done, "1")
        return
    while True:
        try:
            _store().wait([done], timedelta(seconds=20))
            return
        except RuntimeError:  # the store's time-out: DistStoreError, a RuntimeError
            if first_error() is not None:
                return  # the collective behind this one says who was lost


def _store() -> dist.Store:
    # torch has no public name for the store that init_process_group was given or made.
    return dist.distributed_c10d._get_default_store()
