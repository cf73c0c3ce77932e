"""How every command ends: with an exit code and at most one sentence, whatever stopped it."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from gipo_mc.errors import EXIT_INTERRUPTED, EXIT_NO_READER, ConfigError, GipoError
from gipo_mc.run.terminal.voice import keep_voice

#: Seconds after Ctrl-C in which an error is one that comes of it.
_COMES_OF_IT = 10.0
_PACKAGE = Path(__file__).resolve().parents[2]
REINSTALL = "pip install -c constraints.txt -e . in the repository (or: make venv)"
_UNFINISHED = (
    "{} is not installed for {}. Activate the environment that gipo_mc was installed in, or install it: "
    f"{REINSTALL}. gipo-mc doctor says what else is missing."
)


def ended(work: Callable[[], int]) -> int:
    """Call `work` and return the exit code: its own, that of the `GipoError` that ended it, 130 after Ctrl-C, or 141
    where nobody reads what it prints any more (`gipo-mc plan | head`)."""
    from gipo_mc.run.arguments import say_error  # which nobody needs who asks for help

    try:
        with keep_voice(), _ctrl_c_gets_through():
            code = work()
            sys.stdout.flush()
        return code
    except GipoError as error:
        return say_error(error)
    except ModuleNotFoundError as error:
        if not _asked_by_us(error):
            raise
        print(f"\nerror: {_UNFINISHED.format(error.name, sys.executable)}", file=sys.stderr, flush=True)
        return ConfigError.exit_code
    except KeyboardInterrupt as stop:
        return interrupted(stop)
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # rich ends the process where nobody reads
            return EXIT_NO_READER
        raise
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        # Python flushes at its end, and would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_NO_READER


def interrupted(stop: KeyboardInterrupt) -> int:
    """Say so in one line, on the first rank, with what `stop` was raised with, and return the exit code."""
    from gipo_mc.run.jsonl import printable_lines

    if os.environ.get("RANK", "0") == "0":
        print(f"\n{printable_lines(f'Interrupted. {stop}'.strip())}", file=sys.stderr, flush=True)
    return EXIT_INTERRUPTED


@contextmanager
def _ctrl_c_gets_through() -> Iterator[None]:
    """An error that comes of Ctrl-C is raised as KeyboardInterrupt. Libraries in C make another error of one that meets
    them: yaml while it is imported, pydantic while it builds a class."""
    if threading.current_thread() is not threading.main_thread() or (
        signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    pressed = -_COMES_OF_IT

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = time.monotonic()
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    except GipoError:
        raise
    except Exception:
        if time.monotonic() - pressed > _COMES_OF_IT:
            raise
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _asked_by_us(error: ModuleNotFoundError) -> bool:
    """Was it imported by a module of this package, rather than by a user's or another library's?"""
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    asking = next((name for name in reversed(files) if not name.startswith("<frozen")), "")
    return Path(asking).is_relative_to(_PACKAGE)


def _nobody_reads() -> bool:
    """Is standard output a pipe whose reader has gone? Other pipes break, too."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):  # no descriptor, as in tests
        return False
