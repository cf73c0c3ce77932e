"""Calls into code of others that may never come back: a reward function, a tokenizer, a chat template.

A collective that hangs ends by itself at parallel.timeout_minutes; such a call does not. It is entered here, and the
thread that watches the run (`gipo_mc.run.watch`) ends the job when it has taken that long.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Call:
    """A call that goes on. what: for the user; deadline: on the monotonic clock, in seconds."""

    what: str
    deadline: float


_seconds = math.inf
_calls: list[Call] = []


def set_limit(seconds: float) -> None:
    """What every call within `limited` may take."""
    global _seconds
    _seconds = seconds


@contextmanager
def limited(what: str) -> Iterator[None]:
    """Around a call into code that may hang. what: who is called, as the subject of a sentence."""
    call = Call(what, time.monotonic() + _seconds)
    _calls.append(call)
    try:
        yield
    finally:
        _calls.remove(call)


def overdue() -> str:
    """A sentence on a call that has taken longer than the limit, or ""."""
    late = [call for call in tuple(_calls) if call.deadline < time.monotonic()]
    if not late:
        return ""
    return (
        f"{late[-1].what} did not return within {_seconds:g} seconds (parallel.timeout_minutes; raise it if the call "
        "may take longer)."
    )
