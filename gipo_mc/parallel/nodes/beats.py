"""Signs of life between hosts. A host whose cable is pulled, or whose kernel is gone, closes no connection: without
this, the others would wait in a collective for parallel.timeout_minutes, and the host itself for ever.

Every rank counts up its host's beat in the rendezvous store; the first rank of each host looks whether that of the next
one moves. So a request or two by rank and look, however many hosts there are; and a host that is cut off notices that
the store does not answer it.
"""

from __future__ import annotations

import os
import socket
from itertools import count

import torch.distributed as dist

from gipo_mc.parallel import news
from gipo_mc.parallel.nodes.greeting import Host, host_key, hosts

_watches = count()


class Beats:
    """Of one `gipo_mc.run.watch.Watch`; the ranks make theirs in the same order."""

    def __init__(self, store: dist.Store, now: float) -> None:
        """store: of the thread that calls `look`. now: the monotonic clock, in seconds."""
        self._store, self._silence = store, news.silence()
        self._name, self._host = f"beats/{next(_watches)}", host_key()
        self._due = 0.0
        self._seen, self._seen_at = "", now
        self._next = self._neighbour() if self._silence else None

    def look(self, now: float) -> str:
        """Give a sign of life, look for that of the next host; a sentence where that or the store is silent, else "".
        It may return late, not never."""
        if not self._silence:
            return ""
        if news.unanswered():
            return (
                f"Host {socket.gethostname()} was cut off from the others: the store at "
                f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} has not answered it for "
                f"{self._silence:g} seconds (parallel.silence_seconds). The same command continues from the last "
                "checkpoint, if there is one."
            )
        if now < self._due:
            return ""
        self._due = now + self._silence / 10
        news.count_up(f"{self._name}/{self._host}", self._store)
        if self._next is None:
            return ""
        beat = news.read(f"{self._name}/{self._next.key}", self._store)
        if beat is None:
            return ""  # the store is lost, and collectives are left
        if beat != self._seen or news.read(f"{self._name}/left/{self._next.key}", self._store):
            self._seen, self._seen_at = beat, now
        if now - self._seen_at <= self._silence:
            return ""
        return (
            f"Host {self._next.name} ({self._next.address}, ranks from {self._next.first} on) gave no sign of life for "
            f"{self._silence:g} seconds (parallel.silence_seconds): it was cut off or is gone, or one call there kept "
            "Python's lock for so long. The same command continues from the last checkpoint, if there is one."
        )

    def leave(self) -> None:
        """This host's ranks end their run: their silence means nothing from here on."""
        if self._silence:
            news.count_up(f"{self._name}/left/{self._host}", self._store)

    def _neighbour(self) -> Host | None:
        """The host that this rank looks after."""
        if os.environ.get("LOCAL_RANK", "0") != "0":
            return None
        others = hosts()
        keys = [host.key for host in others]
        return others[(keys.index(self._host) + 1) % len(others)] if len(others) > 1 else None
