"""What ranks tell each other through the store, also when that is gone, and what an earlier attempt told."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch.distributed as dist

from gipo_mc.parallel import limits, news
from gipo_mc.parallel.collectives import any_rank, on_main
from tests.ranks import run_ranks


def _attempts(rank: int) -> list[object]:
    """An error of attempt 0 is no news in attempt 1."""
    if rank == 1:
        news.record_error(3, "a bad row")
    dist.barrier()
    found: list[object] = [news.first_error(), any_rank(rank == 1), any_rank(False)]
    os.environ["TORCHELASTIC_RESTART_COUNT"] = "1"
    found.append(news.first_error())
    news.announce_stop("SIGTERM")
    return [*found, news.announced_stop(news.own_store())]


def test_a_restarted_job_does_not_hear_the_dead_one() -> None:
    error = news.RankError(1, 3, "a bad row")
    assert run_ranks(_attempts, 2) == [[error, True, False, None, "SIGTERM"]] * 2


def _without_store(rank: int, port: int, server: int) -> list[object]:
    """The store of torchrun, which is killed: rank 0's work still reaches the others, by the collective."""
    dist.destroy_process_group()
    store = dist.TCPStore("127.0.0.1", port, None, False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    dist.barrier()
    if rank == 0:
        os.kill(server, signal.SIGKILL)
        time.sleep(0.2)
    dist.barrier()
    found: list[object] = [on_main(lambda: "written"), on_main(lambda: "twice")]
    news.record_error(1, "nobody hears it")
    return [*found, news.first_error(), news.announced_stop(), any_rank(rank == 1)]


def test_ranks_whose_torchrun_is_gone_go_on_with_collectives() -> None:
    reader, writer = os.pipe()
    server = os.fork()
    if server == 0:
        store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
        os.write(writer, str(store.port).encode())
        time.sleep(60)
        os._exit(0)
    port = int(os.read(reader, 16))
    try:
        assert run_ranks(_without_store, 2, port, server) == [["written", "twice", None, "", True]] * 2
    finally:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)


def test_a_call_is_overdue_after_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_seconds", 0.05)
    with limits.limited("The outer"), limits.limited("The inner"):
        assert limits.overdue() == ""
        time.sleep(0.1)
        assert limits.overdue().startswith("The inner did not return within 0.05 seconds (parallel.timeout_minutes;")
    assert limits.overdue() == ""


def test_a_store_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of its time-out ended the thread that watches the run."""
    monkeypatch.setattr(news, "_lost", False)
    asked: list[str] = []

    def question(store: dist.Store) -> str:
        asked.append("asked")
        raise dist.DistStoreError("wait timeout after 1000ms, keys: /x")

    store = dist.HashStore()
    assert [news._ask(question, "otherwise", store) for _ in range(2)] == ["otherwise"] * 2
    assert asked == ["asked"]
