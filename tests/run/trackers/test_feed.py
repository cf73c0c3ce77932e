"""A tracker is fed on a thread of its own: whatever it does, the run goes on, and what it lacks is counted."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path

import pytest

from gipo_mc.run.trackers import feed as feeds
from gipo_mc.run.trackers.feed import Feed
from gipo_mc.run.trackers.protocol import End
from tests.run.trackers.fakes import FakeTracker, about

DONE = End("done", 0)


def test_entries_come_in_order_and_the_end_last(tmp_path: Path) -> None:
    tracker = FakeTracker()
    feed = Feed(tracker, about(tmp_path))
    for step in range(50):
        feed.put("scalars", step, {"a": step})
    feed.put("text", 49, "warnings", "careful")
    assert feed.close(DONE, 20) == "" and feed.complaint() == ""
    assert [entry[1] for entry in tracker.got] == [*range(50), 49]
    assert tracker.starts == 1 and tracker.end is DONE


@pytest.mark.parametrize("error", [RuntimeError("no network"), OSError(errno.ENOSPC, "No space left"), SystemExit(1)])
def test_a_tracker_that_fails_is_complained_of_once_and_tried_again(tmp_path: Path, error: BaseException) -> None:
    """It gets everything when it is back, the entry that it failed with, too."""
    away = [True]

    def fail(kind: str) -> None:
        if kind == "scalars" and away[0]:
            away[0] = False
            raise error

    tracker = FakeTracker(fail)
    feed = Feed(tracker, about(tmp_path), pause=0.01)
    for step in range(3):
        feed.put("scalars", step, {})
    tracker.wait_for(3)
    said = feed.complaint()
    assert said.startswith(f"Fake does not take the metrics ({type(error).__name__}: ") and "metrics.jsonl" in said
    assert feed.complaint() == "" and feed.close(DONE, 20) == ""
    assert [entry[1] for entry in tracker.got] == [0, 1, 2] and tracker.starts == 2


def test_an_entry_that_fails_twice_is_dropped(tmp_path: Path) -> None:
    def fail(kind: str) -> None:
        if kind == "histogram":
            raise ValueError("such a thing is not taken here")

    tracker = FakeTracker(fail)
    feed = Feed(tracker, about(tmp_path), pause=0.01)
    feed.put("histogram", 1, "reward", [])
    feed.put("scalars", 1, {})
    tracker.wait_for(1)
    assert feed.dropped == 1 and "did not get 1 entries (ValueError" in feed.close(DONE, 20)


def test_a_tracker_that_never_opens_costs_the_run_nothing_and_the_oldest_entries_go(tmp_path: Path) -> None:
    def fail(kind: str) -> None:
        raise ConnectionError("no route to host")

    tracker = FakeTracker(fail)
    feed = Feed(tracker, about(tmp_path), size=10, pause=60)
    begin = time.monotonic()
    for step in range(10_000):
        feed.put("scalars", step, {})
    said = feed.close(DONE, 20)
    assert time.monotonic() - begin < 5, "the pause is cut short by the end"
    assert "did not get 10000 entries, nor how the run ended (ConnectionError: no route to host)" in said
    assert tracker.got == [] and tracker.starts == 2


def test_a_tracker_that_hangs_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "HANG", 0.05)
    forever = threading.Event()
    tracker = FakeTracker(lambda kind: forever.wait(30) and None)
    feed = Feed(tracker, about(tmp_path))
    begin = time.monotonic()
    feed.put("scalars", 1, {})
    time.sleep(0.1)
    assert "no answer for 0.05 seconds" in feed.complaint() and feed.complaint() == ""
    assert "did not get 1 entries, nor how the run ended" in feed.close(DONE, 0.1)
    assert time.monotonic() - begin < 5
    forever.set()


def test_what_is_printed_of_an_error_is_one_line_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gipo_mc.config import environment

    monkeypatch.setattr(environment, "_hidden", {"s3cret-key": "${oc.env:WANDB_API_KEY}"})

    def fail(kind: str) -> None:
        raise RuntimeError("key s3cret-key\nat https://me:pass@host\x1b[31m")

    feed = Feed(FakeTracker(fail), about(tmp_path), pause=60)
    said = feed.close(DONE, 20)
    assert "s3cret" not in said and "pass@" not in said and "\n" not in said and "\x1b" not in said
