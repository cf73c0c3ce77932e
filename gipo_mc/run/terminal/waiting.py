"""What a person sees of work that takes longer than some seconds: what goes on, how far it is, how long it will take.

It goes to stderr: one line that changes on a terminal, a new line now and then elsewhere. Not with --quiet.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from gipo_mc.run.terminal.voice import is_quiet

#: Seconds after which something is said, and between two lines where there is no terminal.
FIRST, ON_TERMINAL, LATER = 5.0, 1.0, 30.0
#: Seconds that importing torch and Megatron-core takes, on a machine that does nothing else.
IMPORTS = 6.0


@contextmanager
def waiting(
    what: str, about: float = 0.0, *, told: bool = True, logged: bool = True
) -> Iterator[Callable[[int, int], None]]:
    """Around work that may take long. Yields f(done, of), to be called by work that knows how far it is.

    about: seconds that it usually takes, 0: unknown; the time left follows from it until `done` is told. told: whether
    this rank speaks. logged: say it where stderr is no terminal, too.
    """
    terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    if is_quiet() or not told or not (terminal or logged):
        yield lambda done, of: None
        return
    state, over = _State(what, about), threading.Event()
    teller = threading.Thread(target=_tell, args=(state, over, terminal), name="waiting", daemon=True)
    teller.start()
    try:
        yield state.reached
    finally:
        over.set()
        teller.join()


def importing(told: bool = True) -> AbstractContextManager[object]:
    """Around the imports that take longest. told: whether this rank says so. Logs need not know of them."""
    return waiting("Importing torch and Megatron-core", IMPORTS, told=told, logged=False)


class _State:
    def __init__(self, what: str, about: float) -> None:
        self._what, self._about, self._began = what, about, time.monotonic()
        self._done, self._of = 0, 0

    def reached(self, done: int, of: int) -> None:
        self._done, self._of = done, of

    def line(self) -> str:
        spent = time.monotonic() - self._began
        far = f" {self._done}/{self._of}" if self._of else ""
        left = spent * (self._of - self._done) / self._done if self._done else self._about - spent
        return f"{self._what}{far}, {duration(spent)}" + (f", about {duration(left)} left" if left >= 0.5 else "")


def _tell(state: _State, over: threading.Event, terminal: bool) -> None:
    shown, pause = False, FIRST
    while not over.wait(pause):
        line = state.line()
        print(f"\r\x1b[K{line}" if terminal else line, end="" if terminal else "\n", file=sys.stderr, flush=True)
        shown, pause = True, ON_TERMINAL if terminal else LATER
    if terminal and shown:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`seconds` as a person says it: 42 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
