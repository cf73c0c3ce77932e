"""What ranks tell each other outside collectives, through the rendezvous store: the first error, a wish to stop, and
long work.

A collective cannot do it: a rank that failed takes part in none, and one that waits for rank 0's download would run
into the time-out that is there to find hangs. torchrun may hold the store, and torchrun may be killed: then nothing can
be told any more, and the ranks have collectives alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")

#: Seconds between two looks of a rank that waits for rank 0.
_LOOK = 2.0
_calls = count()
_job = 0
_lost = False
_silence = 0.0
_limit = 0.0
_unanswered = False


@dataclass(frozen=True)
class RankError:
    """The first error of a job: on which rank, with which exit code and message.

    hang: somebody did not answer in time; every rank then shows where it is. place: added to the message where ranks
    run on several hosts.
    """

    rank: int
    exit_code: int
    message: str
    hang: bool = False
    place: str = ""


def of_several_hosts(silence: float, timeout: float) -> None:
    """The store may be on a host that is cut off. silence: seconds after which a host is taken for lost, and the store
    for unanswered; 0: hosts are not watched, and the store may take `timeout` seconds for an answer."""
    global _silence, _limit
    _silence, _limit = silence, silence or timeout


def silence() -> float:
    """Seconds without a sign of life after which a host of a job of several is taken for lost; 0: never."""
    return _silence


def unanswered() -> bool:
    """Has the store, which is there, given no answer for so long? (One whose process ended is only lost.)"""
    return _unanswered


def new_job() -> None:
    """What was told before is no news any more: the same ranks, all of which call this, begin something else."""
    global _job
    _job += 1


def record_error(
    exit_code: int, message: str, *, hang: bool = False, place: str = "", store: dist.Store | None = None
) -> None:
    """Tell the job that this rank is about to fail; the first rank to do so is remembered.

    store: of this thread (`own_store`), where it is not the main one.
    """
    error = RankError(dist.get_rank(), exit_code, message, hang, place)

    def tell(to: dist.Store) -> None:
        if to.add(_key("first_error/claimed"), 1) == 1:
            to.set(_key("first_error"), json.dumps(asdict(error)))

    _ask(tell, None, store)


def first_error(store: dist.Store | None = None) -> RankError | None:
    """The first error that a rank announced, or None."""
    text = read("first_error", store)
    return RankError(**json.loads(text)) if text else None


def first_to_say(message: str, store: dist.Store | None = None) -> bool:
    """Is this rank the first with this message? For what many ranks find at once and a person should read once."""
    key = _key(f"said/{hashlib.sha256(message.encode()).hexdigest()}")
    return _ask(lambda to: to.add(key, 1), 1, store) == 1


def first_loss(said: str) -> str:
    """What the first rank that missed another said of it; `said` where this is the first. A rank that ends because
    another is gone is missed in its turn, and it is the one that fell first that a person looks for."""
    if not dist.is_initialized():
        return said
    return _ask(lambda to: to.compare_set(_key("first_loss"), "", said).decode(), said)


def announce_stop(why: str, store: dist.Store | None = None) -> None:
    """Let every rank know that the job is asked to stop."""
    _ask(lambda to: to.set(_key("stop"), why), None, store)


def announced_stop(store: dist.Store | None = None) -> str:
    """Why the job is asked to stop, or "" where no rank said that it is."""
    return read("stop", store) or ""


def announce_end(message: str, store: dist.Store | None = None) -> None:
    """Say that this rank ends now, because the job was asked to stop and no step ended in time."""
    _ask(lambda to: to.set(_key("end"), message), None, store)


def announced_end() -> str:
    """The message of a rank that ended because no step ended in time, or ""."""
    return read("end") or ""


def while_others_wait(work: Callable[[], None]) -> None:
    """Call `work` on rank 0 and let the other ranks wait for it, however long it takes. `work` must not raise.

    What may never return is called within `limits.limited`. If rank 0 dies, torchrun ends the ranks that wait.
    """
    done = _key(f"done/{next(_calls)}")
    if dist.get_rank() == 0:
        work()
        _ask(lambda to: to.set(done, "1"), None)
        return
    while not _ask(lambda to: _is_set(to, done), True):
        if first_error() is not None:
            return  # the collective behind this one says who was lost


def count_up(name: str, store: dist.Store) -> None:
    """Add 1 to what the job knows under `name`."""
    _ask(lambda to: to.add(_key(name), 1), 0, store)


def own_store() -> dist.Store:
    """The store over a connection of its own, for another thread: a wait in one thread would hold up the other."""
    clone: dist.Store = _store().clone()  # type: ignore[attr-defined]  # torch's stubs lack it
    return clone


def _is_set(store: dist.Store, key: str) -> bool:
    try:
        store.wait([key], timedelta(seconds=_LOOK))
    except dist.DistNetworkError:
        raise
    except RuntimeError:  # the time-out of this look: a DistStoreError, or of another store than TCP's a plain one
        return False
    return True


def read(name: str, store: dist.Store | None = None) -> str | None:
    """What the job knows under `name`, "" for nothing; None where the store is lost."""
    if not dist.is_initialized():
        return ""
    key = _key(name)
    return _ask(lambda of: of.get(key).decode() if of.check([key]) else "", None, store)


def _ask(question: Callable[[dist.Store], T], otherwise: T, store: dist.Store | None = None) -> T:
    """The store's answer, or `otherwise` where the store is gone, or does not answer within the time-out. It is not
    asked again then: each time torch would print the C++ frames of the lost connection, or wait as long again."""
    global _lost, _unanswered
    if _lost:
        return otherwise
    try:
        return _in_time(lambda: question(store or _store()))
    except TimeoutError:
        _lost = _unanswered = True
        return otherwise
    except (dist.DistNetworkError, dist.DistStoreError):
        _lost = True
        return otherwise


def _in_time(question: Callable[[], T]) -> T:
    """The answer, or TimeoutError: torch waits without end for a store whose host is cut off."""
    if not _limit:
        return question()
    found: list[Any] = []

    def work() -> None:
        try:
            found.append((question(), None))
        except BaseException as error:
            found.append((None, error))

    thread = threading.Thread(target=work, name="store", daemon=True)
    thread.start()
    thread.join(_limit + _LOOK)  # a look may take as long by itself
    if not found:
        raise TimeoutError
    answer, error = found[0]
    if error is not None:
        raise error
    return answer  # type: ignore[no-any-return]


def _key(name: str) -> str:
    # `torchrun --max-restarts` starts the ranks again on the same store: what the dead ones told is not news.
    job = f".{_job}" if _job else ""
    return f"gipo_mc/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}{job}/{name}"


def _store() -> dist.Store:
    # torch has no public name for the store that init_process_group was given or made.
    return dist.distributed_c10d._get_default_store()
