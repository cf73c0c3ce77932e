"""How every command ends: with an exit code and at most one sentence, whatever stopped it."""

from __future__ import annotations

import os
import select
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from gipo_mc.errors import EXIT_INTERRUPTED, EXIT_NO_READER, ConfigError, GipoError
from gipo_mc.run.terminal.ctrl_c import gets_through
from gipo_mc.run.terminal.voice import is_first_rank, keep_voice

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
        with keep_voice(), gets_through():
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
    said = "Interrupted."
    if stop.args:
        from gipo_mc.run.jsonl import printable_lines  # whose imports may be what was interrupted, without a word

        said += f" {printable_lines(str(stop))}"
    if is_first_rank():
        print(f"\n{said}", file=sys.stderr, flush=True)
    return EXIT_INTERRUPTED


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
