"""Pauses that servers ask for, in the header of either kind of server."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from gipo_mc.evaluation.judges import server_replies
from gipo_mc.rl.reward_sources import protocol
from gipo_mc.run.servers.retry_after import retry_after

DATES = {"date": "Tue, 01 Jan 2030 00:00:00 GMT", "retry-after": "Tue, 01 Jan 2030 00:01:30 GMT"}


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "1"}, 1.0),
        ({"retry-after": "-3"}, 0.0),
        (DATES, 90.0),
        ({"retry-after": formatdate(0, usegmt=True)}, 0.0),
        *(({"retry-after": text}, None) for text in ("soon", "nan", "inf", "", "Tue, 99 Jan", "1e999")),
        ({}, None),
    ],
)
def test_a_pause_is_seconds_or_a_date_of_the_servers_clock(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_a_date_without_the_servers_clock_is_compared_with_ours() -> None:
    assert 50.0 < (retry_after({"retry-after": formatdate(time.time() + 60, usegmt=True)}) or 0.0) <= 60.0


def test_servers_of_rewards_and_of_verdicts_are_heard_alike() -> None:
    assert protocol.read_reply(503, DATES, b"", 1).pause == server_replies.read_reply(503, DATES, b"", ()).pause == 90.0
