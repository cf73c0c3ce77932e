"""A host that falls silent is noticed by the one before it, and by itself."""

from __future__ import annotations

import threading
import time

import pytest
import torch.distributed as dist

from gipo_mc.parallel import news
from gipo_mc.parallel.nodes import beats, greeting
from gipo_mc.parallel.nodes.beats import Beats
from gipo_mc.parallel.nodes.greeting import Host

HOSTS = tuple(Host(f"{n}:here", f"node{n}", f"10.0.0.{n}", 1, n) for n in range(3))


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch):
    """Beats of host n, all over one store, with 1 s of silence."""
    for name, value in (("_silence", 1.0), ("_limit", 1.0), ("_lost", False), ("_unanswered", False)):
        monkeypatch.setattr(news, name, value)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(greeting, "_hosts", HOSTS)
    store = dist.HashStore()

    def made(number: int) -> Beats:
        with monkeypatch.context() as patch:
            patch.setattr(beats, "host_key", lambda: HOSTS[number].key)
            patch.setattr(beats, "_watches", iter([0]))
            return Beats(store, 0.0)

    return made


def test_a_silent_host_is_noticed_by_the_one_before_it(host) -> None:
    first, second, third = host(0), host(1), host(2)
    for now in (0.5, 1.0, 1.5):
        assert [one.look(now) for one in (first, second, third)] == ["", "", ""]
    said = [[one.look(now) for one in (first, second)] for now in (2.0, 2.8, 3.2)]
    assert said[:2] == [["", ""]] * 2 and said[2][0] == ""
    assert said[2][1].startswith("Host node2 (10.0.0.2, ranks from 2 on) gave no sign of life for 1 seconds")


def test_one_that_never_came_is_silent_and_one_that_left_is_not(host) -> None:
    first = host(0)
    assert first.look(0.5) == "" and first.look(1.1).startswith("Host node1 (10.0.0.1")
    first, second = host(0), host(1)
    second.look(0.5)
    second.leave()
    assert [first.look(now) for now in (1.0, 3.0, 9.0)] == ["", "", ""]


class Silent:
    """A store whose host is cut off: an answer never comes."""

    def __init__(self) -> None:
        self.asked = 0
        self.end = threading.Event()

    def add(self, key: str, value: int) -> int:
        self.asked += 1
        self.end.wait(20)
        return value


def test_a_host_that_is_cut_off_notices_it_and_asks_no_more(host, monkeypatch: pytest.MonkeyPatch) -> None:
    one, store = host(0), Silent()
    one._store = store
    monkeypatch.setattr(news, "_limit", 0.1)
    begin = time.monotonic()
    assert one.look(0.2) == "" and time.monotonic() - begin < 5
    assert one.look(0.3).startswith("Host ") and "was cut off from the others: the store at" in one.look(0.4)
    assert store.asked == 1
    store.end.set()


def test_silence_off_asks_nothing(host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(news, "_silence", 0.0)
    one = host(0)
    one._store = None
    assert one.look(1000.0) == ""
    one.leave()
