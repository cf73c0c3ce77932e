"""What a person sees of work that takes longer than some seconds: what goes on, how far it is, how long it will take.

It goes to stderr: one line that changes on a terminal, a new line now and then elsewhere. Not with --quiet. Where work
is a part of other work, the part alone speaks.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from gipo_mc.run.terminal.ctrl_c import ends_at_once
from gipo_mc.run.terminal.voice import is_first_rank, is_quiet

#: Seconds after which something is said, and between two lines where there is no terminal.
FIRST, ON_TERMINAL, LATER = 5.0, 1.0, 30.0
#: Seconds that importing torch and Megatron-core takes, on a machine that does nothing else.
IMPORTS = 6.0


@contextmanager
def waiting(what: str, about: float = 0.0, *, told: bool = True, logged: bool = True) -> Iterator[Progress]:
    """Around work that may take long. Yields what work that knows how far it is calls.

    about: seconds that it usually takes, 0: unknown; the time left follows from it until steps are told. told: whether
    this rank speaks. logged: say it where stderr is no terminal, too.
    """
    terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    progress, over = Progress(what, about), threading.Event()
    if is_quiet() or not told or not (terminal or logged):
        yield progress
        return
    teller = threading.Thread(target=_tell, args=(progress, over, terminal), name="waiting", daemon=True)
    _open.append(progress)
    teller.start()
    try:
        yield progress
    finally:
        over.set()
        teller.join()
        _open.remove(progress)


@contextmanager
def importing() -> Iterator[None]:
    """Around the imports that take longest. The first rank says so, and logs need not know of them. Ctrl-C ends the
    process at once (`ends_at_once`)."""
    with ends_at_once(), waiting("Importing torch and Megatron-core", IMPORTS, told=is_first_rank(), logged=False):
        yield


class Progress:
    """How far work is. Called with (steps done, of how many); where it has several phases, `phase` begins the next one,
    whose steps are counted by themselves."""

    def __init__(self, what: str, about: float = 0.0) -> None:
        self._what, self._about = what, about
        self._began = self._phase_began = time.monotonic()
        self._phase = ""
        self._done, self._of = 0, 0

    def __call__(self, done: int, of: int) -> None:
        self._done, self._of = done, of

    def phase(self, what: str) -> None:
        self._phase, self._phase_began, self._about = what, time.monotonic(), 0.0
        self._done, self._of = 0, 0

    def line(self) -> str:
        """What is shown now. The time left is that of the phase, where there are phases: of those to come nothing is
        known."""
        now = time.monotonic()
        spent = now - self._phase_began
        far = f" {self._done}/{self._of}" if self._of else ""
        left = spent * (self._of - self._done) / self._done if self._done else self._about - spent
        said = f", about {duration(left)} left" if left >= 0.5 else ""
        what, whole = (f"{self._what}: {self._phase}", " of this") if self._phase else (self._what, "")
        return f"{what}{far}, {duration(now - self._began)}{said}{whole if said else ''}"


#: Work that is shown now, the outermost first.
_open: list[Progress] = []


def _tell(progress: Progress, over: threading.Event, terminal: bool) -> None:
    shown, pause = False, FIRST
    while not over.wait(pause):
        pause = ON_TERMINAL if terminal else LATER
        if _open[-1:] == [progress]:
            line = _safe(progress.line())
            width = shutil.get_terminal_size().columns - 1 if terminal else None  # a second line would stay there
            print(
                f"\r\x1b[K{line[:width]}" if terminal else line,
                end="" if terminal else "\n",
                file=sys.stderr,
                flush=True,
            )
            shown = True
    if terminal and shown:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _safe(text: str) -> str:
    try:
        from gipo_mc.run.jsonl import printable  # which nobody needs who asks for help
    except ImportError:  # doctor, where what the package needs is missing: its words are its own
        return text
    return printable(text)


def duration(seconds: float) -> str:
    """`seconds` as a person says it: 42 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
