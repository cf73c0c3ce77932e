"""Ranks of several hosts compare what they are before the first collective. Threads stand for ranks, over one store."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import timedelta

import pytest
import torch.distributed as dist

from gipo_mc.errors import ConfigError, GipoError, PeerError
from gipo_mc.parallel.nodes import greeting
from gipo_mc.parallel.nodes.greeting import Host


def _ranks(same: list[Mapping[str, str]], *, come: int | None = None, refuses: str = "") -> list[object]:
    """What each rank is told, of `same` by rank."""
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=1))
    said: list[object] = [None] * len(same)

    def rank(number: int) -> None:
        own = Host(str(number), f"node{number}", f"10.0.0.{number}", 1, number)
        try:
            with greeting._store_answers():
                said[number] = greeting._compared(store, own, number, len(same), dict(same[number]))
        except GipoError as error:
            said[number] = error

    if refuses:
        greeting._refuse(store, refuses, 3)
    threads = [threading.Thread(target=rank, args=(number,)) for number in range(come or len(same))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def test_ranks_that_are_alike_learn_of_each_others_hosts() -> None:
    said = _ranks([{"torch": "2.13"}] * 3)
    assert said[0] == said[1] == said[2]
    table = greeting._understood(said[0])  # type: ignore[arg-type]
    assert [(host.name, host.address) for host in table] == [(f"node{n}", f"10.0.0.{n}") for n in range(3)]


def test_a_rank_that_is_unlike_the_first_is_an_error_on_all() -> None:
    said = _ranks([{"torch": "2.13", "policy.lr": "0.1"}, {"torch": "2.13", "policy.lr": "0.1"}, {"torch": "2.12"}])
    for one in said:
        with pytest.raises(ConfigError) as caught:
            greeting._understood(one)  # type: ignore[arg-type]
        lines = str(caught.value).split("\n")
        assert lines[1:3] == ["  - torch: 2.12 and 2.13", "  - policy.lr: - and 0.1"]
        assert "host node2 (rank 2) and on host node0 (rank 0)" in lines[0]


def test_a_refusal_reaches_those_who_wait_and_those_who_come_later() -> None:
    for one in _ranks([{}, {}], come=1, refuses="no such file"):
        if one is not None:
            with pytest.raises(GipoError, match="no such file") as caught:
                greeting._understood(one)  # type: ignore[arg-type]
            assert caught.value.exit_code == 3


def test_a_host_that_does_not_come_is_said_at_the_time_out() -> None:
    said = _ranks([{}, {}], come=1)
    assert isinstance(said[0], PeerError) and str(said[0]).startswith("Not all hosts of this job came: ")


def test_the_host_of_a_connection_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greeting, "_hosts", (Host("0:a", "a", "10.0.0.1", 8, 0), Host("1:b", "b", "10.0.0.2", 8, 8)))
    assert "host b (10.0.0.2)" in greeting.host_at("Connection closed by peer [10.0.0.2]:4242")
    assert greeting.host_at("Connection closed by peer [10.0.0.22]:4242") == ""
