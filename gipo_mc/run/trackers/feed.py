"""Feeds one tracker on a thread of its own, so that nothing it does stops or slows a run.

The thread that trains puts entries into a bounded queue and goes on. Where the tracker raises or hangs they wait there;
the oldest are dropped once it is full, and counted. After a failure the tracker is opened again, with longer and longer
pauses, and given what waits.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from gipo_mc.run.jsonl import printable
from gipo_mc.run.trackers.protocol import About, End, Tracker

#: Entries that may wait: some hundred iterations.
QUEUE = 2000
#: Seconds of the first and of the longest pause after a failure, each twice the one before.
PAUSE, LONGEST_PAUSE = 5.0, 300.0
#: Seconds without an answer after which a tracker is said to hang.
HANG = 60.0


class Feed:
    """tracker: its methods are called on this feed's thread alone. dropped: entries that it will not get."""

    def __init__(self, tracker: Tracker, about: About, *, size: int = QUEUE, pause: float = PAUSE) -> None:
        self.dropped = 0
        self._tracker, self._about = tracker, about
        self._size, self._pause = size, pause
        self._queue: deque[tuple[str, tuple[Any, ...]]] = deque()
        self._changed = threading.Condition()
        self._end: End | None = None
        self._deadline = float("inf")
        self._open = self._ended = self._complained = self._again = False
        self._current: tuple[str, tuple[Any, ...]] | None = None
        self._failures = 0
        self._trouble = ""
        self._since: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"feed of {tracker.title}", daemon=True)
        self._thread.start()

    def put(self, kind: str, *entry: Any) -> None:
        """An entry for the tracker: the name of its method, and what that takes. Returns at once."""
        with self._changed:
            if len(self._queue) >= self._size:
                self._queue.popleft()
                self.dropped += 1
            self._queue.append((kind, entry))
            self._changed.notify()

    def complaint(self) -> str:
        """A sentence on the first trouble, once; else ""."""
        since = self._since
        if not self._trouble and since is not None and time.monotonic() - since > HANG:
            self._trouble = f"no answer for {HANG:g} seconds"
        if self._complained or not self._trouble:
            return ""
        self._complained = True
        return (
            f"{self._tracker.title} does not take the metrics ({self._trouble}). The run goes on without it and tries "
            "again now and then; metrics.jsonl has everything."
        )

    def close(self, end: End, seconds: float) -> str:
        """Give the tracker what waits and the end, for at most so many seconds. Returns a sentence on what it lacks, or
        ""."""
        with self._changed:
            self._end, self._deadline = end, time.monotonic() + seconds
            self._changed.notify()
        self._thread.join(seconds)
        lost = self.dropped + len(self._queue) + (self._current is not None)
        if self._ended and not lost:
            return ""
        said = f" ({self._trouble})" if self._trouble else ""
        ended = "" if self._ended else ", nor how the run ended"
        return f"{self._tracker.title} did not get {lost} entries{ended}{said}. metrics.jsonl has everything."

    # ------------------------------------------------------------------------------------------------ in the thread
    def _run(self) -> None:
        while self._has_work():
            if not self._open:
                self._open = self._tried(lambda: self._tracker.start(self._about))
            elif self._queue:
                self._deliver()
            elif self._end is not None:
                self._ended = self._tried(lambda: self._tracker.finish(self._end))  # type: ignore[arg-type]
                return
            if not self._open and not self._wait():
                return

    def _has_work(self) -> bool:
        """Wait for some. False: the time is over."""
        with self._changed:
            while self._open and not self._queue and self._end is None:
                self._changed.wait()
        return time.monotonic() < self._deadline

    def _deliver(self) -> None:
        """Give the tracker the oldest entry; one that fails twice is dropped."""
        with self._changed:
            kind, values = self._current = self._queue.popleft()
        done = self._tried(lambda: getattr(self._tracker, kind)(*values))
        with self._changed:
            if done:
                self._failures = 0
            elif self._again or len(self._queue) >= self._size:
                self.dropped += 1
            else:
                self._queue.appendleft(self._current)
            self._again, self._open = not done and not self._again, done
            self._current = None

    def _tried(self, call: Callable[[], None]) -> bool:
        self._since = time.monotonic()
        try:
            call()
        except BaseException as error:  # SystemExit of a library, too: this thread has nothing else to end
            self._failures += 1
            said = printable(f"{type(error).__name__}: {error}")
            self._trouble = self._trouble or (said if len(said) <= 200 else f"{said[:200]}...")
            return False
        finally:
            self._since = None
        return True

    def _wait(self) -> bool:
        """The pause after a failure, cut short by the end of the run, where one more attempt is all. False: it was
        made."""
        pause = min(self._pause * 2 ** (self._failures - 1), LONGEST_PAUSE)
        with self._changed:
            if self._end is not None:
                return False
            self._changed.wait_for(lambda: self._end is not None, pause)
        return True
