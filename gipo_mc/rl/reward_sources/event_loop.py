"""One event loop for the whole process, in a thread of its own, for asynchronous reward functions and for servers.

`asyncio.run` would not do: it fails where the caller's thread has a loop running, as notebooks do, and it closes its
loop each time, with which the connections end that a function or a client keeps from one iteration to the next.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_loop: asyncio.AbstractEventLoop | None = None
_owner = 0


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, waited for here. What it raises is raised here, SystemExit too; Ctrl-C here cancels
    it."""

    async def outcome() -> tuple[T | None, BaseException | None]:
        # A SystemExit would end the loop, and nobody would wake the thread that waits.
        try:
            return await work, None
        except (Exception, SystemExit) as error:
            return None, error

    future = asyncio.run_coroutine_threadsafe(outcome(), _running_loop())
    try:
        result, error = future.result()
    except BaseException:
        future.cancel()
        raise
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # None only beside an error, or as the coroutine's own result


async def of_user(work: Awaitable[T]) -> T:
    """What a coroutine of the user's returns. If it is cancelled from within, by a task that it cancelled and waited
    for, that is raised as a RuntimeError: asyncio would cancel all that waits, as if Ctrl-C had been pressed."""
    try:
        return await work
    except asyncio.CancelledError as error:
        raise RuntimeError("it was cancelled").with_traceback(error.__traceback__) from error


def _running_loop() -> asyncio.AbstractEventLoop:
    """The loop of this process; a fork has no thread of its parent's."""
    global _loop, _owner
    if _loop is None or _owner != os.getpid():
        _loop, _owner = asyncio.new_event_loop(), os.getpid()
        threading.Thread(target=_loop.run_forever, name="rewards", daemon=True).start()
    return _loop
