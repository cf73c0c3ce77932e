"""Ctrl-C where Python's own answer does not get through, above all while modules are imported.

KeyboardInterrupt is raised wherever the interpreter stands. In a destructor it is printed and lost, as in regex's,
which transformers imports: a rank goes on then, and torchrun kills it half a minute later. Libraries in C make another
error of it: yaml while it is imported, pydantic while it builds a class. Of native code that waits for another rank
`run/watch.py` sees to it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from gipo_mc.errors import EXIT_INTERRUPTED, GipoError
from gipo_mc.run.terminal.voice import is_first_rank

#: Said of it where a run ends by it.
SAVES_FIRST = "Ctrl-C saves nothing; SIGTERM (kill PID) saves before it ends a run."
#: Seconds after Ctrl-C in which an error is one that comes of it.
COMES_OF_IT = 10.0
#: Seconds after which Ctrl-C that a destructor dropped comes again: by then the destructor is left.
AGAIN = 0.05


class _Noted:
    """Python's own answer to Ctrl-C, which remembers when that was."""

    def __init__(self) -> None:
        self.pressed = -COMES_OF_IT

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.pressed = time.monotonic()
        signal.default_int_handler(number, frame)


@contextmanager
def _not_dropped() -> Iterator[None]:
    """KeyboardInterrupt that a destructor drops is raised again behind it, without a word of the destructor."""
    otherwise = sys.unraisablehook
    waiting: list[threading.Timer] = []

    def dropped(what: sys.UnraisableHookArgs) -> None:
        if not issubclass(what.exc_type, KeyboardInterrupt):
            otherwise(what)
            return
        waiting.append(threading.Timer(AGAIN, os.kill, (os.getpid(), signal.SIGINT)))
        waiting[-1].daemon = True
        waiting[-1].start()

    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = otherwise
        for each in waiting:  # what is interrupted has ended by itself
            each.cancel()


@contextmanager
def ends_at_once() -> Iterator[None]:
    """Around imports of a command, before which nothing has begun that would have to be undone: Ctrl-C ends the process
    with a word on the first rank. Not where it is ignored, as behind nohup, or answered by somebody else."""
    earlier = signal.getsignal(signal.SIGINT)
    if not (_is_answered_here() and (earlier is signal.default_int_handler or isinstance(earlier, _Noted))):
        yield
        return
    signal.signal(signal.SIGINT, _quit)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, earlier)


@contextmanager
def gets_through() -> Iterator[None]:
    """An error that comes of Ctrl-C is raised as KeyboardInterrupt, unless it is a `GipoError`, which says more; what a
    destructor drops is raised again."""
    if not (_is_answered_here() and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
        yield
        return
    noted = _Noted()
    signal.signal(signal.SIGINT, noted)
    try:
        with _not_dropped():
            yield
    except GipoError:
        raise
    except Exception:
        if time.monotonic() - noted.pressed > COMES_OF_IT:
            raise
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def is_a_commands() -> bool:
    """Does a command of this package answer Ctrl-C, and not the program of a library's user, such as a notebook?"""
    return isinstance(signal.getsignal(signal.SIGINT), _Noted)


def _is_answered_here() -> bool:
    """Signals are the main thread's."""
    return threading.current_thread() is threading.main_thread()


def _quit(number: int, frame: FrameType | None) -> None:
    if is_first_rank():
        os.write(2, b"\nInterrupted.\n")
    os._exit(EXIT_INTERRUPTED)
